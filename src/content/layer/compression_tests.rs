//! Each format, and several members in a row.

use super::*;
use crate::testkit::gzip;

fn plain(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    decompress(bytes)?.read_to_end(&mut all)?;
    Ok(all)
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// RFC 8878, section 3.1.2.
fn skippable(content: &[u8]) -> Vec<u8> {
    [
        &[0x50, 0x2a, 0x4d, 0x18],
        (content.len() as u32).to_le_bytes().as_slice(),
        content,
    ]
    .concat()
}

#[test]
fn accept_every_format() {
    let long = vec![7; 300_000];
    for content in [&b""[..], b"x", &long] {
        assert_eq!(plain(content).unwrap(), content);
        assert_eq!(plain(&gzip(content)).unwrap(), content);
        assert_eq!(plain(&zstd(content)).unwrap(), content);
    }
    assert_eq!(plain(&[gzip(b"a"), gzip(b"b")].concat()).unwrap(), b"ab");
    let chunked = [
        skippable(b"toc"),
        zstd(b"a"),
        skippable(b""),
        zstd(b"b"),
        skippable(b"footer"),
    ];
    assert_eq!(plain(&chunked.concat()).unwrap(), b"ab");
}

#[test]
fn refuse_truncated() {
    for whole in [gzip(&[7; 3000]), zstd(&[7; 3000]), skippable(b"content")] {
        assert!(plain(&whole[..whole.len() - 1]).is_err());
        assert!(plain(&whole[..5]).is_err());
    }
    assert!(plain(&[zstd(b"a"), b"garbage".to_vec()].concat()).is_err());
}
