//! /proc/self/mountinfo (proc_pid_mountinfo(5)) and the layers that an overlay mount names.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountinfoError {
    #[error("line {0} of mountinfo is malformed")]
    Line(usize),
    #[error("only {0} of an overlay is mounted, not the whole")]
    Part(PathBuf),
    #[error("the overlay mount has the option `{0}`, which is not known")]
    Option(String),
    #[error(
        "the overlay mount names its layers by relative paths, which do not lie in one configured store"
    )]
    Relative,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// As statx(2) gives it for a descriptor.
    pub id: u64,
    /// Major and minor number of the file system: `8:1`.
    pub device: String,
    /// What of the file system is mounted.
    pub root: PathBuf,
    pub mount_point: PathBuf,
    pub fs_type: String,
    /// Options of the file system, as it shows them.
    pub options: Vec<u8>,
}

/// The directories of an overlay mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Overlay {
    /// Absent for a read-only mount.
    pub upper: Option<PathBuf>,
    /// Topmost first, as the kernel takes them.
    pub lower: Vec<PathBuf>,
    /// The mount named some by relative paths: where these lie is likely and not known, since whoever
    /// mounted it may have stood elsewhere.
    pub guessed: bool,
}

/// Every mount, in the kernel's order: of two at the same place the later one is seen.
pub fn parse(text: &[u8]) -> Result<Vec<Mount>, MountinfoError> {
    let lines = text
        .split(|byte| *byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty());
    lines
        .map(|(number, line)| parse_line(line).ok_or(MountinfoError::Line(number + 1)))
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<_> = line.split(|byte| *byte == b' ').collect();
    let optional_end = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let fs_type = String::from_utf8(unescape(fields.get(optional_end + 1)?)?).ok()?;
    Some(Mount {
        id: std::str::from_utf8(fields.first()?).ok()?.parse().ok()?,
        device: std::str::from_utf8(fields.get(2)?).ok()?.to_owned(),
        root: path(unescape(fields.get(3)?)?),
        mount_point: path(unescape(fields.get(4)?)?),
        fs_type,
        options: unescape(fields.get(optional_end + 3)?)?,
    })
}

/// Space, tab, newline and backslash are written `\ooo` (fs/proc_namespace.c, mangle).
fn unescape(field: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        match first {
            b'\\' => {
                let (digits, tail) = tail.split_at_checked(3)?;
                bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()?);
                rest = tail;
            }
            byte => bytes.push(*byte),
        }
    }
    Some(bytes)
}

fn path(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

/// Where else the directory or file at `path` is: another mount shows as much or more of the file system
/// that is mounted there. So a bind mount's source is found. `path` is canonical.
pub fn origins(path: &Path, mounts: &[Mount]) -> Vec<PathBuf> {
    let covers = |mount: &&Mount| path.starts_with(&mount.mount_point);
    // of two at the same place the later one is seen, and `max_by_key` gives the last
    let covering = mounts
        .iter()
        .filter(covers)
        .max_by_key(|mount| mount.mount_point.as_os_str().len());
    let Some((covering, rest)) =
        covering.and_then(|mount| Some((mount, path.strip_prefix(&mount.mount_point).ok()?)))
    else {
        return Vec::new();
    };
    let inside = joined(&covering.root, rest);
    let others = || {
        mounts.iter().filter(|mount| {
            mount.device == covering.device
                && inside.starts_with(&mount.root)
                && mount.mount_point != covering.mount_point
        })
    };
    let length = |mount: &Mount| mount.root.as_os_str().len();
    let Some(widest) = others().map(length).min() else {
        return Vec::new();
    };
    others()
        .filter(|mount| length(mount) == widest && widest <= length(covering))
        .filter_map(|mount| {
            let rest = inside.strip_prefix(&mount.root).ok()?;
            Some(joined(&mount.mount_point, rest))
        })
        .collect()
}

/// Without a slash at the end.
fn joined(directory: &Path, rest: &Path) -> PathBuf {
    match rest.as_os_str().is_empty() {
        true => directory.to_owned(),
        false => directory.join(rest),
    }
}

impl Mount {
    /// The directories that an overlay mount shows; `None` for another file system. `stores`: where
    /// relative ones may lie.
    pub(super) fn overlay(&self, stores: &[PathBuf]) -> Result<Option<Overlay>, MountinfoError> {
        if self.fs_type != "overlay" {
            return Ok(None);
        }
        if self.root != Path::new("/") {
            return Err(MountinfoError::Part(self.root.clone()));
        }
        overlay_of(&self.options, stores).map(Some)
    }

    /// Where an overlay's changes go, if its mount names that by an absolute path.
    pub fn upper(&self) -> Option<PathBuf> {
        let options = split(&self.options, b',');
        let values = options.iter().filter_map(|o| o.strip_prefix(b"upperdir="));
        let uppers: Vec<_> = values.map(|value| path(plain(value))).collect();
        match &uppers[..] {
            [upper] if self.fs_type == "overlay" && upper.is_absolute() => Some(upper.clone()),
            _ => None,
        }
    }
}

/// The same from mount options.
pub(super) fn overlay_of(options: &[u8], stores: &[PathBuf]) -> Result<Overlay, MountinfoError> {
    let mut overlay = Overlay {
        upper: None,
        lower: Vec::new(),
        guessed: false,
    };
    // Within a value `\,`, `\:` and `\\` are escaped once more (overlayfs.rst).
    for option in split(options, b',') {
        let (key, value) = match option.iter().position(|byte| *byte == b'=') {
            Some(at) => (&option[..at], &option[at + 1..]),
            None => (&option[..], &[][..]),
        };
        match key {
            b"upperdir" => overlay.upper = Some(path(plain(value))),
            b"lowerdir" => {
                overlay
                    .lower
                    .extend(split(value, b':').iter().map(|one| path(plain(one))));
            }
            // One layer each, since Linux 6.8.
            b"lowerdir+" => overlay.lower.push(path(plain(value))),
            // Files whose content lies elsewhere: nothing here follows that.
            b"datadir+" => {
                return Err(MountinfoError::Option(
                    String::from_utf8_lossy(&option).into_owned(),
                ));
            }
            _ => {}
        }
    }
    if overlay
        .lower
        .iter()
        .any(|lower| lower.as_os_str().is_empty())
    {
        return Err(MountinfoError::Option("lowerdir=…::…".into()));
    }
    overlay.make_absolute(stores)?;
    Ok(overlay)
}

impl Overlay {
    /// Engines that have many layers change to their store and name them from there: `l/ABC` and
    /// `<id>/diff` below `<graph root>/overlay`, `12/fs` below `<store>/snapshots`. containerd leaves
    /// the upper directory absolute (`<store>/<id>/fs`); where it is relative too, the layers' names
    /// are unique enough to find the store that has them.
    fn make_absolute(&mut self, stores: &[PathBuf]) -> Result<(), MountinfoError> {
        let of_upper = match &self.upper {
            Some(upper) if upper.is_absolute() => {
                upper.parent().and_then(Path::parent).map(Path::to_owned)
            }
            _ => None,
        };
        let Overlay {
            upper,
            lower,
            guessed,
        } = self;
        let relative = upper
            .iter_mut()
            .chain(lower)
            .filter(|path| !path.is_absolute());
        let relative: Vec<&mut PathBuf> = relative.collect();
        if relative.is_empty() {
            return Ok(());
        }
        let has_all = |store: &&PathBuf| relative.iter().all(|path| store.join(path).exists());
        let store = match of_upper {
            Some(store) => store,
            // one store, or nobody can say which
            None => {
                let mut with_all = stores.iter().filter(has_all);
                match (with_all.next(), with_all.next()) {
                    (Some(store), None) => store.clone(),
                    _ => return Err(MountinfoError::Relative),
                }
            }
        };
        for path in relative {
            *path = store.join(&*path);
        }
        *guessed = true;
        Ok(())
    }
}

/// At `separator`s that have no backslash before them; the backslashes stay.
fn split(text: &[u8], separator: u8) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut escaped = false;
    for &byte in text {
        if byte == separator && !escaped {
            parts.push(Vec::new());
        } else if let Some(last) = parts.last_mut() {
            last.push(byte);
        }
        escaped = byte == b'\\' && !escaped;
    }
    parts
}

fn plain(escaped: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.iter();
    while let Some(&byte) = rest.next() {
        match byte {
            b'\\' => bytes.extend(rest.next()),
            byte => bytes.push(byte),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_for_changes_is_told() {
        let mount = |text: &[u8]| parse(text).unwrap().remove(0);
        let upper = mount(PODMAN).upper().unwrap();
        assert_eq!(upper, Path::new("/g/overlay/id/diff"));
        for text in [
            &b"1 2 0:3 / /m rw - overlay overlay rw,lowerdir=a:b,upperdir=c/diff,workdir=c/w\n"[..],
            b"1 2 0:3 / /m ro - overlay overlay ro,lowerdir=/a:/b\n",
            b"1 2 0:3 / /m rw - ext4 /dev/x rw,upperdir=/c\n",
        ] {
            assert_eq!(mount(text).upper(), None);
        }
    }

    const PODMAN: &[u8] = b"132 44 0:108 / /g/overlay/a\\040b/merged rw,relatime shared:1 master:2 - overlay overlay rw,lowerdir=/g/overlay/l/AA:/g/overlay/l/BB,upperdir=/g/overlay/id/diff,workdir=/g/overlay/id/work,volatile\n";

    #[test]
    fn accept_origins_of_bind_mounts() {
        let text = b"20 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            21 20 0:30 / /run rw - tmpfs tmpfs rw\n\
            22 20 0:30 /containerd /v/a/_data rw - tmpfs tmpfs rw\n\
            23 20 0:30 / /v/b/_data rw - tmpfs tmpfs rw\n\
            24 20 8:1 /etc/x /srv/x rw - ext4 /dev/sda1 rw\n\
            25 20 8:2 /@home /home rw - btrfs /dev/sda2 rw\n";
        let mounts = parse(text).unwrap();
        for (path, found) in [
            // the whole, and parts of it elsewhere
            ("/etc/x", &[][..]),
            ("/run/containerd", &["/v/b/_data/containerd"]),
            ("/v/a/_data", &["/run/containerd", "/v/b/_data/containerd"]),
            (
                "/v/a/_data/s",
                &["/run/containerd/s", "/v/b/_data/containerd/s"],
            ),
            ("/v/b/_data", &["/run"]),
            ("/srv/x", &["/etc/x"]),
            ("/srv/x/y", &["/etc/x/y"]),
            // a part of a file system, of which no more is to be seen
            ("/home/me", &[]),
            ("/srv/xy", &[]),
        ] {
            let found: Vec<_> = found.iter().map(PathBuf::from).collect();
            assert_eq!(origins(Path::new(path), &mounts), found, "{path}");
        }
    }

    #[test]
    fn accept_overlay() {
        let mounts = parse(PODMAN).unwrap();
        assert_eq!(mounts.len(), 1);
        assert_eq!(mounts[0].mount_point, Path::new("/g/overlay/a b/merged"));
        let overlay = mounts[0].overlay(&[]).unwrap().unwrap();
        assert_eq!(
            overlay.upper.as_deref(),
            Some(Path::new("/g/overlay/id/diff"))
        );
        assert_eq!(
            overlay.lower,
            ["/g/overlay/l/AA", "/g/overlay/l/BB"].map(PathBuf::from)
        );
    }

    #[test]
    fn accept_relative_and_escaped() {
        let text = b"1 2 0:3 / /m rw - overlay overlay rw,lowerdir=89/fs:a\\134:b/fs,upperdir=/c/snapshots/90/fs,workdir=/c/w\n";
        let overlay = parse(text).unwrap()[0].overlay(&[]).unwrap().unwrap();
        assert_eq!(
            overlay.lower,
            ["/c/snapshots/89/fs", "/c/snapshots/a:b/fs"].map(PathBuf::from)
        );
        assert!(overlay.guessed);
        let text = b"1 2 0:3 / /m rw - overlay overlay rw,lowerdir+=/a,lowerdir+=/b\n";
        let overlay = parse(text).unwrap()[0].overlay(&[]).unwrap().unwrap();
        assert_eq!(overlay.lower, ["/a", "/b"].map(PathBuf::from));
        assert!(!overlay.guessed);
        let text = b"1 2 8:1 /x /m rw - ext4 /dev/sda rw\n";
        assert_eq!(parse(text).unwrap()[0].overlay(&[]), Ok(None));
    }

    #[test]
    fn refuse_malformed() {
        for bad in [
            "1 2 3",
            "1 2 0:3 / /m rw overlay overlay rw",
            "1 2 0:3 / /m\\04 rw - ext4 a b",
        ] {
            assert_eq!(parse(bad.as_bytes()), Err(MountinfoError::Line(1)), "{bad}");
        }
    }

    #[test]
    fn refuse_unknown_layers() {
        let overlay = |options: &str| {
            let line = format!("1 2 0:3 / /m rw - overlay overlay {options}");
            parse(line.as_bytes()).unwrap()[0].overlay(&[])
        };
        assert_eq!(overlay("rw,lowerdir=a:b"), Err(MountinfoError::Relative));
        assert!(matches!(
            overlay("rw,lowerdir=/a::/b"),
            Err(MountinfoError::Option(_))
        ));
        assert!(matches!(
            overlay("rw,lowerdir+=/a,datadir+=/b"),
            Err(MountinfoError::Option(_))
        ));
    }
}
