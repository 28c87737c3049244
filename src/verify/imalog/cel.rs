//! A second view of a log: TCG Canonical Event Log in JSON, one record after the other as RFC 7464 has
//! it (record separator, one line, line feed), which is the form that systemd writes and reads.
//!
//! Made from the log, never read back for a decision: the digests say nothing that the content does not.

use super::Entry;

/// ASCII's record separator (RFC 7464).
const RS: char = '\u{1e}';

/// The log's entries in their order.
pub fn cel_json(entries: &[Entry]) -> String {
    let mut text = String::new();
    for (number, entry) in entries.iter().enumerate() {
        let (sha1, sha256) = entry.extend_values();
        let record = serde_json::json!({
            "recnum": number,
            "pcr": entry.pcr().get(),
            "digests": [
                { "hashAlg": "sha256", "digest": hex::encode(sha256) },
                { "hashAlg": "sha1", "digest": hex::encode(sha1) },
            ],
            "content_type": "ima_template",
            "content": {
                "template_name": entry.template().name(),
                "template_data": hex::encode(entry.template_data()),
            },
        });
        text.push(RS);
        text.push_str(&record.to_string());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        digest::FileDigest,
        event::Event,
        imalog::{EncodedPath, parse},
    };
    use sha2::{Digest as _, Sha256};

    #[test]
    fn accept_records_that_explain_themselves() {
        let file = Entry::file(FileDigest::of(b"abc"), EncodedPath::of(b"/bin/a").unwrap());
        let entries = [Event::Start.to_entry().unwrap(), file];
        let text = cel_json(&entries);
        let records: Vec<&str> = text.split_terminator('\n').collect();
        assert_eq!(records.len(), 2);
        for (number, (record, entry)) in records.iter().zip(&entries).enumerate() {
            let json = record.strip_prefix(RS).unwrap();
            let record: serde_json::Value = serde_json::from_str(json).unwrap();
            assert_eq!(record["recnum"], number);
            assert_eq!(record["pcr"], entry.pcr().get());
            // The content alone gives the digest, and with its PCR and name the entry.
            let content = &record["content"];
            let data = hex::decode(content["template_data"].as_str().unwrap()).unwrap();
            let digest = hex::encode(Sha256::digest(&data));
            assert_eq!(record["digests"][0]["digest"], digest);
            let name = content["template_name"].as_str().unwrap().as_bytes();
            let mut bytes = u32::from(entry.pcr()).to_le_bytes().to_vec();
            bytes.extend(hex::decode(record["digests"][1]["digest"].as_str().unwrap()).unwrap());
            for part in [name, &data] {
                bytes.extend((part.len() as u32).to_le_bytes());
                bytes.extend(part);
            }
            assert_eq!(parse(&bytes).unwrap(), std::slice::from_ref(entry));
        }
    }
}
