//! The form in which the kernel shows its list to people (`ascii_runtime_measurements`): one line per
//! entry. Other people's verifiers read it (Keylime knows no other). Made from the log, never read back.

use super::{Entry, Template};
use crate::digest::FileDigest;
use std::fmt::Write as _;

/// The entries' lines. Paths and names have no spaces or line feeds: they are encoded where they are made.
pub fn ascii<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> String {
    let mut text = String::new();
    for entry in entries {
        let (sha1, sha256) = entry.extend_values();
        let (pcr, name) = (entry.pcr().get(), entry.template().name());
        let _ = write!(text, "{pcr:2} {} {name} sha256:", hex::encode(sha1));
        let _ = match entry.template() {
            Template::ImaNg { digest, path } => {
                writeln!(text, "{} {}", digest.hex(), path.as_str())
            }
            Template::ImaBuf { name, buf } => {
                writeln!(
                    text,
                    "{} {name} {}",
                    FileDigest::of(buf).hex(),
                    hex::encode(buf)
                )
            }
            Template::Opaque { .. } => writeln!(text, "{}", hex::encode(sha256)),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imalog::EncodedPath;
    use crate::pcr;

    /// The columns of Linux's `ima_ascii_measurements_show` and of its templates' fields.
    #[test]
    fn lines_are_as_the_kernel_writes_them() {
        let file = Entry::file(
            FileDigest::of(b"abc"),
            EncodedPath::of(b"/bin/a b").unwrap(),
        );
        let buffer = Entry::buffer(pcr::RUNTIME, "attestrun.start", b"{}".to_vec()).unwrap();
        let text = ascii([&file, &buffer]);
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let empty = FileDigest::of(b"{}").hex();
        let hash = |entry: &Entry| hex::encode(entry.extend_values().0);
        assert_eq!(
            text,
            format!(
                "10 {} ima-ng sha256:{digest} /bin/a%20b\n 0 {} ima-buf sha256:{empty} attestrun.start 7b7d\n",
                hash(&file),
                hash(&buffer)
            )
        );
    }
}
