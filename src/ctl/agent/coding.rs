//! Content codings of an agent's answers, undone: a small answer may unfold to a large one, so both are
//! bounded.

use anyhow::{Context as _, bail};
use flate2::read::GzDecoder;
use ruzstd::decoding::StreamingDecoder;
use std::io::Read;

/// What is asked for: RFC 8878 and RFC 1952.
pub const ACCEPTED: &str = "zstd, gzip";

const MAGIC: [u8; 4] = 0xFD2F_B528u32.to_le_bytes();
/// RFC 9659, section 3.
const MAX_WINDOW: u64 = 8 << 20;

/// The answer itself, of at most `max` bytes.
pub fn decode(coding: &str, bytes: &[u8], max: usize) -> anyhow::Result<Vec<u8>> {
    match coding {
        "gzip" => unfold(GzDecoder::new(bytes), max),
        "zstd" => match (window(bytes), StreamingDecoder::new(bytes)) {
            (Some(..=MAX_WINDOW), Ok(decoder)) => unfold(decoder, max),
            (Some(..=MAX_WINDOW), Err(e)) => bail!("{e}"),
            (Some(wide), _) => bail!("a window of {wide} bytes, {MAX_WINDOW} are allowed"),
            (None, _) => bail!("it is no frame"),
        },
        _ => bail!("this was not asked for"),
    }
    .with_context(|| format!("unpacking the answer ({coding})"))
}

/// Bytes that a decoder of this frame keeps: the decoder itself does not bound them (RFC 8878, section
/// 3.1.1.1).
fn window(frame: &[u8]) -> Option<u64> {
    let (descriptor, rest) = frame.strip_prefix(&MAGIC)?.split_first()?;
    let single_segment = descriptor & 0x20 != 0;
    if !single_segment {
        let (exponent, mantissa) = (rest.first()? >> 3, u64::from(rest.first()? & 7));
        let base = 1u64 << (10 + exponent);
        return Some(base + base / 8 * mantissa);
    }
    // no window, but the content's length, after the dictionary's id
    let id = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let length = 1usize << (descriptor >> 6);
    let mut field = [0; 8];
    field
        .get_mut(..length)?
        .copy_from_slice(rest.get(id..)?.get(..length)?);
    Some(u64::from_le_bytes(field) + if length == 2 { 256 } else { 0 })
}

fn unfold(coded: impl Read, max: usize) -> anyhow::Result<Vec<u8>> {
    let mut plain = Vec::new();
    coded.take(max as u64 + 1).read_to_end(&mut plain)?;
    match plain.len() <= max {
        true => Ok(plain),
        false => bail!("it unpacks to more than {max} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    use std::io::Write as _;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        compress_to_vec(bytes, CompressionLevel::Fastest)
    }

    /// Blocks of one repeated byte (RFC 8878, section 3.1.1.2.3), 128 KiB each, behind a window of 1 MiB.
    fn zstd_bomb(blocks: usize) -> Vec<u8> {
        let mut bytes = 0xFD2F_B528u32.to_le_bytes().to_vec();
        bytes.extend([0, 10 << 3]);
        for block in 1..=blocks {
            let head = (128 << 10) << 3 | 1 << 1 | usize::from(block == blocks);
            bytes.extend(&head.to_le_bytes()[..3]);
            bytes.push(b'a');
        }
        bytes
    }

    #[test]
    fn accept_what_was_coded() {
        let plain: Vec<u8> = (0..100_000u32).map(|n| (n % 97) as u8).collect();
        for (name, coded) in [("gzip", gzip(&plain)), ("zstd", zstd(&plain))] {
            assert!(coded.len() < plain.len());
            assert_eq!(decode(name, &coded, plain.len()).unwrap(), plain, "{name}");
            assert!(decode(name, &coded, plain.len() - 1).is_err(), "{name}");
        }
        assert_eq!(
            decode("zstd", &zstd_bomb(1), 1 << 20).unwrap().len(),
            128 << 10
        );
    }

    #[test]
    fn refuse_bombs() {
        for (name, bomb) in [
            ("gzip", gzip(&vec![0; 64 << 20])),
            ("zstd", zstd_bomb(1 << 14)),
        ] {
            assert!(bomb.len() < 1 << 18);
            let error = format!("{:#}", decode(name, &bomb, 1 << 20).unwrap_err());
            assert!(error.contains("more than 1048576 bytes"), "{error}");
        }
        // windows, or contents without one, of more than 8 MiB
        for (header, expected) in [
            (vec![0, 21 << 3], Some(1 << 31)),
            (vec![0, 13 << 3 | 1], Some((8 << 20) + (1 << 20))),
            (vec![0xe0, 1, 0, 0, 0, 1, 0, 0, 0], Some((1 << 32) + 1)),
            (vec![0xa3, 9, 9, 9, 9, 0, 0, 0, 1], Some(1 << 24)),
            (vec![0, 31 << 3 | 7], Some((1 << 41) + 7 * (1 << 38))),
        ] {
            let mut wide = MAGIC.to_vec();
            wide.extend(header);
            assert_eq!(window(&wide), expected);
            wide.extend(&zstd_bomb(9)[6..]);
            let error = format!("{:#}", decode("zstd", &wide, 1 << 20).unwrap_err());
            assert!(
                error.contains("bytes") && error.contains("window"),
                "{error}"
            );
        }
        assert_eq!(
            window(&[&MAGIC[..], &[0x60, 1, 1]].concat()),
            Some(256 + 257)
        );
    }

    #[test]
    fn refuse_other_codings_and_torn_answers() {
        for (name, coded) in [
            ("br", gzip(b"x")),
            ("zstd", gzip(b"x")),
            ("gzip", zstd(b"x")),
            ("gzip", vec![]),
            ("zstd", vec![]),
            ("gzip", gzip(b"abcdefgh")[..20].to_vec()),
            ("zstd", zstd_bomb(2)[..12].to_vec()),
        ] {
            assert!(decode(name, &coded, 1 << 20).is_err(), "{name}");
        }
    }
}
