//! The fields of a tar header, and the pax records that override them.

use std::collections::BTreeMap;
use tar::Header;
use verify::rootfs::xattr_counts;

/// A numeric field's name and place (POSIX.1-2001, "ustar Header Block").
#[derive(Clone, Copy)]
pub(super) struct Field(pub &'static str, usize, usize);

pub(super) const MODE: Field = Field("mode", 100, 8);
pub(super) const UID: Field = Field("uid", 108, 8);
pub(super) const GID: Field = Field("gid", 116, 8);
pub(super) const SIZE: Field = Field("size", 124, 12);
pub(super) const DEVICE_MAJOR: Field = Field("device number", 329, 8);
pub(super) const DEVICE_MINOR: Field = Field("device number", 337, 8);

impl Field {
    /// Octal digits, or GNU's base 256 (positive only); nothing at all is 0, as for Go.
    pub(super) fn of(self, header: &Header) -> Option<u64> {
        let Self(_, at, length) = self;
        let field = &header.as_bytes()[at..at + length];
        if field[0] & 0x80 != 0 {
            let start = u64::from(field[0] & 0x7f);
            return field[1..].iter().try_fold(start, |sum, byte| {
                sum.checked_mul(256)?.checked_add(u64::from(*byte))
            });
        }
        let digits = field.trim_ascii_start();
        let end = digits.iter().position(|byte| matches!(byte, 0 | b' '));
        let mut digits = digits[..end.unwrap_or(digits.len())].iter();
        digits.try_fold(0u64, |sum, byte| {
            let digit = byte.checked_sub(b'0').filter(|digit| *digit < 8)?;
            sum.checked_mul(8)?.checked_add(u64::from(digit))
        })
    }
}

/// What extended headers say about the next member.
#[derive(Default)]
pub(super) struct Extended {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub sparse: bool,
}

impl Extended {
    /// pax records, `"%d %s=%s\n"` (POSIX.1-2001, "pax Extended Header"); `None` when malformed.
    pub(super) fn read(&mut self, mut records: &[u8]) -> Option<()> {
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ')?;
            let length = usize::try_from(decimal(&records[..space])?).ok()?;
            let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
            records = &records[length..];
            let equals = record.iter().position(|byte| *byte == b'=')?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if key.starts_with(b"GNU.sparse.") {
                self.sparse = true;
            }
            // An empty value takes a former one back; Go keeps the plain header's.
            if value.is_empty() {
                continue;
            }
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(decimal(value)?),
                b"uid" => self.uid = Some(decimal(value)?),
                b"gid" => self.gid = Some(decimal(value)?),
                key => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.")
                        && xattr_counts(name)
                    {
                        self.xattrs.insert(name.to_vec(), value.to_vec());
                    }
                }
            }
        }
        Some(())
    }
}

/// The content of a GNU long name or long link record.
pub(super) fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|byte| *byte == 0) {
        text.truncate(end);
    }
    text
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}
