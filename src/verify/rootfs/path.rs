//! A path inside a rootfs: bytes, relative, without `.`, `..`, empty components or NUL.

use std::{borrow::Borrow, fmt};

/// PATH_MAX and NAME_MAX of Linux (limits.h): what longer name an archive holds cannot be opened.
pub const MAX_PATH: usize = 4095;
pub const MAX_NAME: usize = 255;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("path `{0}` leaves the rootfs (`..`)")]
    Leaves(String),
    #[error("path `{0}` has a NUL byte")]
    Nul(String),
    #[error("path `{0}…` is longer than {MAX_PATH} bytes, or a component than {MAX_NAME}")]
    TooLong(String),
}

/// Relative to the rootfs; the empty path is the rootfs itself. Order is bytewise, so that a
/// directory comes before what it holds.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootfsPath(Vec<u8>);

impl RootfsPath {
    pub const fn root() -> Self {
        Self(Vec::new())
    }

    /// The one spelling of a path: `/a//b/`, `./a/b` and `a/b` are the same.
    pub fn parse(text: &[u8]) -> Result<Self, PathError> {
        let shown = || encode(text.get(..80).unwrap_or(text));
        if text.contains(&0) {
            return Err(PathError::Nul(shown()));
        }
        let mut path = Vec::with_capacity(text.len());
        for name in text.split(|b| *b == b'/') {
            match name {
                b"" | b"." => continue,
                b".." => return Err(PathError::Leaves(shown())),
                name if name.len() > MAX_NAME => return Err(PathError::TooLong(shown())),
                name => {
                    if !path.is_empty() {
                        path.push(b'/');
                    }
                    path.extend_from_slice(name);
                }
            }
        }
        if path.len() > MAX_PATH {
            return Err(PathError::TooLong(shown()));
        }
        Ok(Self(path))
    }

    /// What [`Self::as_bytes`] once gave, from a store that only we write.
    pub(super) fn restore(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// `self/name`; `name` is one component.
    pub fn join(&self, name: &[u8]) -> Result<Self, PathError> {
        let mut text = self.0.clone();
        text.push(b'/');
        text.extend_from_slice(name);
        Self::parse(&text)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// `/usr/bin/app`: the path as the container sees it.
    pub fn absolute(&self) -> Vec<u8> {
        [b"/".as_slice(), &self.0].concat()
    }

    /// The directory that holds it; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        (!self.is_root()).then(|| Self(self.parent_bytes().to_vec()))
    }

    /// The same without a copy; empty for the root.
    pub(super) fn parent_bytes(&self) -> &[u8] {
        let end = self.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
        self.0.get(..end).unwrap_or_default()
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|b| *b == b'/').next().unwrap_or_default()
    }

    /// Whether `self` lies below `directory` (a path does not lie below itself).
    pub fn is_below(&self, directory: &Self) -> bool {
        directory.is_root() && !self.is_root()
            || self
                .0
                .strip_prefix(directory.as_bytes())
                .is_some_and(|rest| rest.first() == Some(&b'/'))
    }

    /// Every path below `self` lies in this half-open range (`0` follows `/` in ASCII).
    pub(super) fn below(&self) -> (Self, Option<Self>) {
        if self.is_root() {
            // The smallest path that is not the root.
            return (Self(vec![0]), None);
        }
        let with = |last: u8| {
            let mut bytes = self.0.clone();
            bytes.push(last);
            Self(bytes)
        };
        (with(b'/'), Some(with(b'/' + 1)))
    }
}

impl Borrow<[u8]> for RootfsPath {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for RootfsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", encode(&self.0))
    }
}

impl fmt::Debug for RootfsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Names and link targets as mtree(5) reads them: `\ooo` (vis(3), VIS_OCTAL) for every byte that
/// is not printable ASCII, and for those that mtree gives a meaning: `\`, `#` (comment), `=`
/// (keyword), `*`, `?`, `[` (patterns). One spelling per byte, so the encoding is injective.
pub fn encode(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for &byte in name {
        match byte {
            b'\\' | b'#' | b'=' | b'*' | b'?' | b'[' => octal(&mut text, byte),
            0x21..=0x7e => text.push(char::from(byte)),
            _ => octal(&mut text, byte),
        }
    }
    text
}

fn octal(text: &mut String, byte: u8) {
    text.push('\\');
    for shift in [6, 3, 0] {
        text.push(char::from(b'0' + (byte >> shift & 7)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RootfsPath {
        RootfsPath::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn accept_one_spelling() {
        for same in ["usr/bin", "/usr/bin", "./usr/bin/", "//usr/.//bin/."] {
            assert_eq!(path(same).as_bytes(), b"usr/bin", "{same}");
        }
        assert!(path("./").is_root());
        assert_eq!(path("usr/bin").absolute(), b"/usr/bin");
        assert_eq!(path("usr/bin").parent(), Some(path("usr")));
        assert_eq!(path("usr").parent(), Some(RootfsPath::root()));
        assert_eq!(RootfsPath::root().parent(), None);
        assert_eq!(path("usr/bin").name(), b"bin");
        assert!(path("...").as_bytes() == b"...");
    }

    #[test]
    fn refuse_leaving_nul_long() {
        for bad in ["..", "a/../b", "/..", "a/.."] {
            assert!(
                matches!(RootfsPath::parse(bad.as_bytes()), Err(PathError::Leaves(_))),
                "{bad}"
            );
        }
        assert!(matches!(RootfsPath::parse(b"a\0b"), Err(PathError::Nul(_))));
        assert!(matches!(
            RootfsPath::parse(&[b'a'; 256]),
            Err(PathError::TooLong(_))
        ));
        assert!(matches!(
            RootfsPath::parse("a/".repeat(2049).as_bytes()),
            Err(PathError::TooLong(_))
        ));
    }

    #[test]
    fn below_is_not_prefix() {
        assert!(path("a/b").is_below(&path("a")));
        assert!(path("a").is_below(&RootfsPath::root()));
        for not in ["a", "ab", "a-b", "b"] {
            assert!(!path(not).is_below(&path("a")), "{not}");
            let (from, to) = path("a").below();
            assert!(!(path(not) >= from && path(not) < to.unwrap()), "{not}");
        }
        assert!(!RootfsPath::root().is_below(&RootfsPath::root()));
    }

    #[test]
    fn encoding_is_injective() {
        let decode = |text: &str| {
            let mut bytes = Vec::new();
            let mut rest = text.as_bytes();
            while let Some((&first, tail)) = rest.split_first() {
                if first == b'\\' {
                    let digits = std::str::from_utf8(&tail[..3]).unwrap();
                    bytes.push(u8::from_str_radix(digits, 8).unwrap());
                    rest = &tail[3..];
                } else {
                    bytes.push(first);
                    rest = tail;
                }
            }
            bytes
        };
        let all: Vec<u8> = (0..=255).collect();
        let text = encode(&all);
        assert_eq!(decode(&text), all);
        assert!(
            text.bytes()
                .all(|b| (0x21..=0x7e).contains(&b) && !b"#=*?[".contains(&b))
        );
        assert_eq!(encode(b"a b"), "a\\040b");
    }
}
