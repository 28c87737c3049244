//! A host kernel's own IMA runtime list (`binary_runtime_measurements`): what it measured, in its words,
//! and the PCR that the list explains.
//!
//! Layout: Linux `security/integrity/ima` (`ima_fs.c`, `ima_template*.c`), little-endian. Values that were
//! extended are recomputed from the template data (kernels since 5.8 extend the bank's own hash of it).

use super::{Input, ParseError, shorten};
use crate::digest::FileDigest;
use crate::pcr::{FILES, PcrIndex, extend_sha256};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// Longest list that is carried: about 200 000 files.
pub const MAX_HOST_LIST: usize = 32 << 20;

/// What one entry says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// A file by its content, under the kernel's spelling of its path (spaces are `_`).
    File { digest: FileDigest, path: Vec<u8> },
    /// A file by something else than the SHA-256 of its content.
    OtherDigest { algorithm: String, path: Vec<u8> },
    /// A named buffer.
    Buffer { name: String },
    /// The file changed while it was in use: what it held is not known. Which one it was the TPM does not
    /// vouch for.
    Violation { path: Option<Vec<u8>> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEntry {
    pub seen: Seen,
    /// What was extended into the SHA-256 bank.
    value: [u8; 32],
    /// Where it ends in the bytes that were read.
    pub end: usize,
}

/// The whole list: strict lengths, the templates that kernels have, matching hashes.
pub fn parse_host(bytes: &[u8]) -> Result<Vec<HostEntry>, ParseError> {
    if bytes.len() > MAX_HOST_LIST {
        return Err(ParseError::TooLong(bytes.len()));
    }
    let mut input = Input(bytes);
    let mut entries = Vec::new();
    while !input.0.is_empty() {
        let (seen, value) = entry(&mut input, entries.len())?;
        let end = bytes.len() - input.0.len();
        entries.push(HostEntry { seen, value, end });
    }
    Ok(entries)
}

/// How many entries explain `quoted`, from a PCR that was `start` (zeros after a reset); the others are newer
/// than the quote.
pub fn explained(start: [u8; 32], entries: &[HostEntry], quoted: &[u8; 32]) -> Option<usize> {
    let mut pcr = start;
    for (count, entry) in entries.iter().enumerate() {
        if pcr == *quoted {
            return Some(count);
        }
        pcr = extend_sha256(&pcr, &entry.value);
    }
    (pcr == *quoted).then_some(entries.len())
}

fn entry(input: &mut Input<'_>, entry: usize) -> Result<(Seen, [u8; 32]), ParseError> {
    let found = input.u32(entry, "PCR")?;
    if PcrIndex::new(found) != Ok(FILES) {
        return Err(ParseError::Pcr { entry, found });
    }
    let hash = input.take(20, entry, "template hash")?;
    let template = input.field(entry, "template name")?;
    let data = input.field(entry, "template data")?;
    if hash == [0; 20] {
        // security/integrity/ima/ima_queue.c, ima_add_violation
        let path = violated(template, data, entry);
        return Ok((Seen::Violation { path }, [0xff; 32]));
    }
    if Sha1::digest(data).as_slice() != hash {
        return Err(ParseError::TemplateHash { entry });
    }
    Ok((seen(template, data, entry)?, Sha256::digest(data).into()))
}

/// The kernel writes the path beside a digest of zeros.
fn violated(template: &[u8], data: &[u8], entry: usize) -> Option<Vec<u8>> {
    match seen(template, data, entry) {
        Ok(Seen::File { path, .. } | Seen::OtherDigest { path, .. }) => Some(path),
        _ => None,
    }
}

fn seen(template: &[u8], data: &[u8], entry: usize) -> Result<Seen, ParseError> {
    let further = match template {
        b"ima-ng" | b"ima-ngv2" => 0,
        b"ima-sig" | b"ima-sigv2" | b"ima-buf" => 1,
        b"ima-modsig" => 3,
        other => {
            let found = shorten(&other.escape_ascii().to_string());
            return Err(ParseError::Template { entry, found });
        }
    };
    let mut data = Input(data);
    let digest = data.field(entry, "digest")?;
    let name = data.field(entry, "name")?;
    let malformed = |field| ParseError::Field { entry, field };
    let path = name.strip_suffix(b"\0").ok_or(malformed("name"))?.to_vec();
    for _ in 0..further {
        data.field(entry, "signature or buffer")?;
    }
    data.end(entry)?;
    if template == b"ima-buf" {
        let name = shorten(&path.escape_ascii().to_string());
        return Ok(Seen::Buffer { name });
    }
    // `sha256:`, NUL, digest; in the newer templates after the digest's type
    let end = digest
        .iter()
        .position(|b| *b == 0)
        .ok_or(malformed("digest"))?;
    let (algorithm, digest) = digest.split_at(end);
    let known = matches!(algorithm, b"sha256:" | b"ima:sha256:");
    match digest
        .get(1..)
        .and_then(|digest| <[u8; 32]>::try_from(digest).ok())
    {
        Some(digest) if known => Ok(Seen::File {
            digest: FileDigest::from_bytes(digest),
            path,
        }),
        None if known => Err(malformed("digest")),
        _ => Ok(Seen::OtherDigest {
            algorithm: shorten(&algorithm.escape_ascii().to_string()),
            path,
        }),
    }
}

/// Lists for tests, put together field by field.
#[cfg(test)]
pub(crate) mod testkit {
    use super::*;

    pub fn file(template: &str, path: &[u8], content: &[u8]) -> Vec<u8> {
        let kind: &[u8] = if template.ends_with("v2") {
            b"ima:"
        } else {
            b""
        };
        let digest: [u8; 32] = Sha256::digest(content).into();
        let mut fields = vec![
            [kind, b"sha256:\0", &digest].concat(),
            [path, b"\0"].concat(),
        ];
        match template {
            "ima-sig" | "ima-sigv2" => fields.push(Vec::new()),
            "ima-modsig" => fields.extend([Vec::new(), Vec::new(), Vec::new()]),
            _ => {}
        }
        raw(template, &fields)
    }

    pub fn raw(template: &str, fields: &[Vec<u8>]) -> Vec<u8> {
        let field = |bytes: &[u8]| [&(bytes.len() as u32).to_le_bytes(), bytes].concat();
        let data: Vec<u8> = fields.iter().flat_map(|bytes| field(bytes)).collect();
        [
            &10u32.to_le_bytes()[..],
            &Sha1::digest(&data),
            &field(template.as_bytes()),
            &field(&data),
        ]
        .concat()
    }

    pub fn violation(path: &[u8]) -> Vec<u8> {
        let mut bytes = file("ima-ng", path, b"");
        bytes.get_mut(4..24).unwrap().fill(0);
        bytes
    }

    pub fn pcr(list: &[u8]) -> [u8; 32] {
        let entries = parse_host(list).unwrap();
        entries
            .iter()
            .fold([0; 32], |pcr, entry| extend_sha256(&pcr, &entry.value))
    }
}

#[cfg(test)]
mod tests {
    use super::testkit::{file, pcr, raw, violation};
    use super::*;

    fn one(bytes: &[u8]) -> Seen {
        parse_host(bytes).unwrap().remove(0).seen
    }

    #[test]
    fn accept_the_kernels_templates() {
        for template in ["ima-ng", "ima-sig", "ima-ngv2", "ima-sigv2", "ima-modsig"] {
            let seen = Seen::File {
                digest: FileDigest::of(b"x"),
                path: b"/usr/bin/a_b\xff\n".to_vec(),
            };
            assert_eq!(
                one(&file(template, b"/usr/bin/a_b\xff\n", b"x")),
                seen,
                "{template}"
            );
        }
        let buffer = [
            b"sha256:\0x".to_vec(),
            b"kexec-cmdline\0".to_vec(),
            b"root=".to_vec(),
        ];
        assert!(matches!(one(&raw("ima-buf", &buffer)), Seen::Buffer { .. }));
        let verity = [b"verity:sha256:\0x".to_vec(), b"/a\0".to_vec()];
        assert!(matches!(
            one(&raw("ima-ngv2", &verity)),
            Seen::OtherDigest { .. }
        ));
        let path = Some(b"/var/log/x".to_vec());
        assert_eq!(one(&violation(b"/var/log/x")), Seen::Violation { path });
    }

    /// Lists of real kernels, with their TPM's PCRs 0 to 10 (tests/vectors/ima).
    #[test]
    fn accept_real_kernels() {
        for (list, pcrs) in [
            (
                &include_bytes!("../../../tests/vectors/ima/linux-6.1-ima-sig.list")[..],
                include_str!("../../../tests/vectors/ima/linux-6.1-ima-sig.pcrs"),
            ),
            (
                include_bytes!("../../../tests/vectors/ima/linux-6.12-ima-ng.list"),
                include_str!("../../../tests/vectors/ima/linux-6.12-ima-ng.pcrs"),
            ),
        ] {
            let decode = |line| <[u8; 32]>::try_from(hex::decode(line).unwrap()).unwrap();
            let pcrs: Vec<_> = pcrs.lines().map(decode).collect();
            let entries = parse_host(list).unwrap();
            assert_eq!(explained([0; 32], &entries, &pcrs[10]), Some(4));
            let seen: Vec<_> = entries.iter().map(|entry| &entry.seen).collect();
            let Seen::File { digest, path } = seen[0] else {
                panic!("{seen:?}");
            };
            assert_eq!(path, b"boot_aggregate");
            assert_eq!(*digest, FileDigest::of(&pcrs[..10].concat()));
            assert!(matches!(seen[1], Seen::File { path, .. } if path == b"/tmp/a_b/true"));
            let path = b"/tmp/libm.so.6".to_vec();
            assert!(matches!(seen[2], Seen::Violation { path: Some(p) } if *p == path));
            assert!(matches!(seen[3], Seen::File { path: p, .. } if *p == path));
        }
    }

    /// The PCR is that of a list's beginning: what is newer than the quote comes after it.
    #[test]
    fn explains_the_beginning() {
        let (first, second) = (file("ima-ng", b"/a", b"a"), violation(b"/b"));
        let both = [first.clone(), second].concat();
        let entries = parse_host(&both).unwrap();
        assert_eq!(explained([0; 32], &entries, &[0; 32]), Some(0));
        assert_eq!(explained([0; 32], &entries, &pcr(&first)), Some(1));
        assert_eq!(explained([0; 32], &entries, &pcr(&both)), Some(2));
        assert_eq!(explained([0; 32], &entries, &[1; 32]), None);
    }

    #[test]
    fn refuse_malformed_lists() {
        let good = file("ima-ng", b"/a", b"a");
        for end in 1..good.len() {
            assert!(parse_host(&good[..end]).is_err(), "{end}");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert!(parse_host(&bad).is_err(), "{at}");
        }
        let short = [b"sha256:\0short".to_vec(), b"/a\0".to_vec()];
        assert!(parse_host(&raw("ima-ng", &short)).is_err());
        let trailing = [
            [b"sha256:\0", &[7; 32][..]].concat(),
            b"/a\0".to_vec(),
            b"?".to_vec(),
        ];
        assert!(parse_host(&raw("ima-ng", &trailing)).is_err());
        assert!(parse_host(&raw("ima-sig", &trailing)).is_ok());
        assert!(parse_host(&vec![0; MAX_HOST_LIST + 1]).is_err());
    }
}
