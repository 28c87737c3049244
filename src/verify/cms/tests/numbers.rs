//! Signatures as kernels want them.

use super::super::p1363;

/// Kernels want r and s by themselves; numbers are shorter than 32 bytes now and then.
#[test]
fn p256_signatures_as_two_numbers() {
    let der = |r: &[u8], s: &[u8]| {
        let number = |bytes: &[u8]| [&[2, bytes.len() as u8], bytes].concat();
        let both = [number(r), number(s)].concat();
        [&[0x30, both.len() as u8], &both[..]].concat()
    };
    let long = [&[0][..], &[0xff; 32]].concat();
    let raw = p1363(&der(&long, &[7])).unwrap();
    assert_eq!(raw[..32], [0xff; 32]);
    assert_eq!(raw[32..], [&[0; 31][..], &[7]].concat());
    let longer = [&[0][..], &[0xff; 33]].concat();
    let trailing = [der(&[1], &[1]), vec![0]].concat();
    let none = [der(&longer, &[1]), trailing, vec![0x55; 384], Vec::new()];
    for bad in none {
        assert_eq!(p1363(&bad), None, "{bad:?}");
    }
}
