//! A judge that shares no code with us: tpm2_checkquote of tpm2-tools.

use crate::spawn::{TempDir, tool};
use std::{fmt::Write as _, fs};
use tpm::Quote;
use verify::pcr::PcrIndex;
use verify::tpm2::Public;

/// Whether tpm2_checkquote accepts the quote over these values of the SHA-256 bank.
pub fn accepts(
    public: &[u8],
    quote: &Quote,
    qualifying_data: &[u8; 32],
    values: &[(PcrIndex, [u8; 32])],
) -> bool {
    let directory = TempDir::new();
    let path = directory.path();
    let public = Public::parse(public).expect("a public area").to_2b();
    fs::write(path.join("ak.pub"), public).expect("written");
    fs::write(path.join("quote.msg"), &quote.attest).expect("written");
    fs::write(path.join("quote.sig"), &quote.signature).expect("written");
    fs::write(path.join("quote.pcr"), pcr_file(values)).expect("written");
    let qualification = qualifying_data.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    let arguments = [
        "-u",
        "ak.pub",
        "-m",
        "quote.msg",
        "-s",
        "quote.sig",
        "-f",
        "quote.pcr",
        "-g",
        "sha256",
        "-q",
        &qualification,
    ];
    let output = tool("tpm2_checkquote", &arguments, path);
    output.status.success()
}

/// The "serialized" PCR file of tpm2-tools 5: the C structures TPML_PCR_SELECTION and a list of
/// TPML_DIGEST as they lie in memory, little-endian.
fn pcr_file(values: &[(PcrIndex, [u8; 32])]) -> Vec<u8> {
    const BANKS: usize = 16;
    const DIGESTS: usize = 8;
    const LONGEST: usize = 64;
    let mask = values
        .iter()
        .fold(0u32, |mask, (pcr, _)| mask | 1 << pcr.get());
    let mut file = 1u32.to_le_bytes().to_vec();
    for bank in 0..BANKS {
        let (algorithm, size, mask) = if bank == 0 {
            (0x000B_u16, 3, mask)
        } else {
            (0, 0, 0)
        };
        file.extend(algorithm.to_le_bytes());
        file.push(size);
        file.extend(mask.to_le_bytes());
        file.push(0); // alignment
    }
    let lists: Vec<_> = values.chunks(DIGESTS).collect();
    file.extend((lists.len() as u32).to_le_bytes());
    for list in lists {
        file.extend((list.len() as u32).to_le_bytes());
        for slot in 0..DIGESTS {
            let value = list.get(slot).map_or(&[][..], |(_, value)| value);
            file.extend((value.len() as u16).to_le_bytes());
            let mut buffer = value.to_vec();
            buffer.resize(LONGEST, 0);
            file.extend(buffer);
        }
    }
    file
}
