//! The digest of what only grows: computed from what was added, without what was there before.
//!
//! A plain SHA-256 cannot be taken up again, so blocks are chained: h starts as 32 zero bytes, and for each
//! block of 256 bytes, the last one as long as it is, h := SHA-256(h ‖ block). With the length beside it, the
//! digest names one sequence of bytes (as SHA-256 is collision resistant).

use crate::digest::FileDigest;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const BLOCK: usize = 256;

/// How far something has been read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Text", into = "Text")]
pub struct Growing {
    bytes: u64,
    chain: [u8; 32],
    /// The beginning of the next block.
    tail: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    bytes: u64,
    chain: FileDigest,
    tail: String,
}

impl Growing {
    pub fn of(bytes: &[u8]) -> Self {
        let mut all = Self::default();
        all.add(bytes);
        all
    }

    pub fn add(&mut self, more: &[u8]) {
        self.bytes += more.len() as u64;
        let missing = (BLOCK - self.tail.len()).min(more.len());
        let (first, rest) = more.split_at(missing);
        self.tail.extend_from_slice(first);
        if self.tail.len() < BLOCK {
            return;
        }
        let mut blocks = rest.chunks_exact(BLOCK);
        self.chain = block(&self.chain, &self.tail);
        for whole in &mut blocks {
            self.chain = block(&self.chain, whole);
        }
        self.tail = blocks.remainder().to_vec();
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }
    pub fn digest(&self) -> FileDigest {
        FileDigest::from_bytes(match self.tail.is_empty() {
            true => self.chain,
            false => block(&self.chain, &self.tail),
        })
    }
}

fn block(chain: &[u8; 32], block: &[u8]) -> [u8; 32] {
    let hash = Sha256::new_with_prefix(chain).chain_update(block);
    hash.finalize().into()
}

impl From<Growing> for Text {
    fn from(growing: Growing) -> Self {
        Self {
            bytes: growing.bytes,
            chain: FileDigest::from_bytes(growing.chain),
            tail: BASE64.encode(growing.tail),
        }
    }
}

impl TryFrom<Text> for Growing {
    type Error = String;
    fn try_from(text: Text) -> Result<Self, String> {
        let tail = BASE64.decode(&text.tail).map_err(|e| e.to_string())?;
        match tail.len() as u64 == text.bytes % BLOCK as u64 {
            true => Ok(Self {
                bytes: text.bytes,
                chain: *text.chain.as_bytes(),
                tail,
            }),
            false => Err("the last block has another length".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_the_digest_of_the_whole() {
        let bytes: Vec<u8> = (0..1500u32).map(|n| (n % 251) as u8).collect();
        for end in [0, 1, 255, 256, 257, 512, 1023, 1500] {
            let whole = Growing::of(&bytes[..end]);
            for step in [1, 7, 255, 256, 300, 1500] {
                let mut parts = Growing::default();
                for part in bytes[..end].chunks(step) {
                    parts.add(part);
                    // kept between any two of them
                    let text = serde_json::to_string(&parts).unwrap();
                    parts = serde_json::from_str(&text).unwrap();
                }
                assert_eq!(parts, whole, "{end} bytes by {step}");
                assert_eq!(parts.digest(), whole.digest());
            }
        }
    }

    #[test]
    fn one_byte_makes_another_digest() {
        let bytes = vec![3; 600];
        for at in [0, 255, 256, 511, 512, 599] {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert_ne!(Growing::of(&bytes).digest(), Growing::of(&other).digest());
        }
        assert_ne!(
            Growing::of(&bytes).digest(),
            Growing::of(&bytes[..599]).digest()
        );
        // as the text above says
        let first = block(&[0; 32], &bytes[..256]);
        let second = block(&first, &bytes[..256]);
        let third = block(&second, &bytes[..88]);
        assert_eq!(Growing::of(&bytes).digest().as_bytes(), &third);
    }

    #[test]
    fn refuse_states_that_contradict_themselves() {
        let good = serde_json::to_string(&Growing::of(b"abc")).unwrap();
        assert!(serde_json::from_str::<Growing>(&good).is_ok());
        let bad = good.replace("\"bytes\":3", "\"bytes\":4");
        assert!(serde_json::from_str::<Growing>(&bad).is_err());
    }
}
