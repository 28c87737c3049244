//! The rootfs manifest's text: an mtree(5) specification with full paths, in one spelling only.
//!
//! ```text
//! manifest  = "#mtree" LF root *entry
//! root      = "." directory LF
//! entry     = "./" name *("/" name) (directory / file / link / device / special) LF
//! directory = " type=dir" attributes *xattr
//! file      = " type=file" attributes " size=" decimal " sha256digest=" 64LHEXDIG *xattr
//! link      = " type=link" attributes " link=" 1*octet
//! device    = " type=" ("char" / "block") attributes " device=linux," decimal "," decimal
//! special   = " type=" ("fifo" / "socket") attributes
//! attributes= " mode=0" 1*4OCTDIG " uid=" decimal " gid=" decimal
//! xattr     = " xattr." 1*octet "=" base64
//! name      = 1*octet                       ; neither "." nor ".."
//! octet     = %x21-22 / %x24-29 / %x2B-3C / %x3E / %x40-5A / %x5D-7E   ; not # * = ? [ \
//!           / "\" 3OCTDIG                   ; every other byte, vis(3) VIS_OCTAL
//! decimal   = "0" / %x31-39 *DIGIT          ; no leading zero
//! base64    = <RFC 4648, section 4, with padding>
//! ```
//! Entries and xattrs stand in bytewise order of their decoded names; the mode has no leading zero
//! after the first. Times are left out: they are not what an image is about. mtree(8) of NetBSD and
//! libarchive read and check it; `xattr.` is gomtree's keyword, which mtree(8) does not know, so that
//! for an image with file capabilities it wants these words taken out first.

use super::{Entry, Kind, RootfsManifest, Tree, encode};
use crate::digest::RootfsDigest;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::fmt::Write as _;

impl RootfsManifest {
    /// The manifest's text: what [`Self::digest`] is the digest of.
    pub fn mtree(&self) -> String {
        self.tree().mtree()
    }

    pub fn digest(&self) -> RootfsDigest {
        RootfsDigest::of(self.mtree().as_bytes())
    }
}

impl Tree {
    /// The same text for a tree that was found.
    pub fn mtree(&self) -> String {
        let mut text = String::with_capacity(160 * self.entries.len());
        text.push_str("#mtree\n");
        for (path, entry) in self.iter() {
            text.push('.');
            if !path.is_root() {
                text.push('/');
                text.push_str(&encode(path.as_bytes()));
            }
            // Writing to a String cannot fail.
            let _ = line(&mut text, entry);
            text.push('\n');
        }
        text
    }
}

impl Entry {
    /// The manifest of this alone: something that is mounted and no directory.
    pub fn mtree(&self) -> String {
        let mut text = String::from("#mtree\n.");
        let _ = line(&mut text, self);
        text.push('\n');
        text
    }
}

fn line(text: &mut String, entry: &Entry) -> std::fmt::Result {
    let Entry {
        kind,
        mode,
        uid,
        gid,
        xattrs,
    } = entry;
    write!(
        text,
        " type={} mode=0{mode:o} uid={uid} gid={gid}",
        kind.name()
    )?;
    match kind {
        Kind::File { size, digest } => write!(text, " size={size} sha256digest={}", digest.hex())?,
        Kind::Symlink { target } => write!(text, " link={}", encode(target))?,
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            write!(text, " device=linux,{major},{minor}")?;
        }
        Kind::Directory | Kind::Fifo | Kind::Socket => {}
    }
    for (name, value) in xattrs {
        write!(text, " xattr.{}={}", encode(name), STANDARD.encode(value))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{digest::FileDigest, rootfs::RootfsPath};

    fn entry(kind: Kind, mode: u16) -> Entry {
        Entry {
            kind,
            mode,
            uid: 0,
            gid: 0,
            xattrs: Default::default(),
        }
    }

    #[test]
    fn accept_golden_manifest() {
        let file = Kind::File {
            size: 3,
            digest: FileDigest::of(b"abc"),
        };
        let mut capable = entry(file, 0o4755);
        capable
            .xattrs
            .insert(b"security.capability".to_vec(), vec![1, 0, 0, 2]);
        let tree = Tree::new(
            [
                ("", entry(Kind::Directory, 0o755)),
                ("tmp", entry(Kind::Directory, 0o1777)),
                ("bin", entry(Kind::Directory, 0)),
                ("bin/a b", capable),
                (
                    "bin-x",
                    entry(
                        Kind::Symlink {
                            target: b"bin/a b".to_vec(),
                        },
                        0o777,
                    ),
                ),
                (
                    "null",
                    entry(Kind::CharDevice { major: 1, minor: 3 }, 0o666),
                ),
                ("pipe", entry(Kind::Fifo, 0o600)),
            ]
            .map(|(path, entry)| (RootfsPath::parse(path.as_bytes()).unwrap(), entry))
            .into(),
        )
        .unwrap();
        assert_eq!(
            tree.mtree(),
            "#mtree\n\
             . type=dir mode=0755 uid=0 gid=0\n\
             ./bin type=dir mode=00 uid=0 gid=0\n\
             ./bin-x type=link mode=0777 uid=0 gid=0 link=bin/a\\040b\n\
             ./bin/a\\040b type=file mode=04755 uid=0 gid=0 size=3 sha256digest=\
             ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad \
             xattr.security.capability=AQAAAg==\n\
             ./null type=char mode=0666 uid=0 gid=0 device=linux,1,3\n\
             ./pipe type=fifo mode=0600 uid=0 gid=0\n\
             ./tmp type=dir mode=01777 uid=0 gid=0\n"
        );
    }

    /// Hard links are entries like any other; a sparse file is what is read of it.
    #[test]
    fn accept_golden_names() {
        let deep = vec![vec![b'n'; 255]; 15].join(&b'/');
        let longest = [deep.as_slice(), b"/", &[b'm'; 255]].concat();
        assert_eq!(longest.len(), crate::rootfs::MAX_PATH);
        let names: [(&[u8], &str); 10] = [
            (b" ", "./\\040"),
            (b"%", "./%"),
            (b"-", "./-"),
            (b"\xff", "./\\377"),
            (b"a\nb", "./a\\012b"),
            (b"\\", "./\\134"),
            (b"#", "./\\043"),
            (b"=", "./\\075"),
            (b"*?[", "./\\052\\077\\133"),
            ("\u{e9}".as_bytes(), "./\\303\\251"),
        ];
        for (name, spelled) in names {
            let socket = RootfsPath::parse(name).unwrap();
            let entries = vec![
                (RootfsPath::root(), entry(Kind::Directory, 0o755)),
                (socket, entry(Kind::Socket, 0o777)),
            ];
            let text = Tree::new(entries).unwrap().mtree();
            let line = format!("{spelled} type=socket mode=0777 uid=0 gid=0");
            assert_eq!(text.lines().nth(2), Some(line.as_str()));
        }
        let mut path = RootfsPath::parse(&longest).unwrap();
        let mut entries = vec![(path.clone(), entry(Kind::Fifo, 0o600))];
        while let Some(parent) = path.parent() {
            entries.push((parent.clone(), entry(Kind::Directory, 0o755)));
            path = parent;
        }
        let text = Tree::new(entries).unwrap().mtree();
        let last = text.lines().last().unwrap();
        let fifo = format!(
            "./{} type=fifo mode=0600 uid=0 gid=0",
            String::from_utf8_lossy(&longest)
        );
        assert_eq!(last, fifo);
    }
}
