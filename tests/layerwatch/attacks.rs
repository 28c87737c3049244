//! A layer on a disk of its own is changed in every way that there is, at random moments: while its watch
//! begins, while it stands, with the file still open and mapped. After each, whatever is said to stand
//! must be what its seal once stood for. Out of scope, since no event tells of it and only root can do it:
//! blocks written to the device beneath the file system, and an overlay mount with the layer as its upper
//! directory.

use super::Disk;
use crate::{cmd, spawn::Running, world::World};
use anyhow::{Context, Result, ensure};
use content::{
    once::FilesRead,
    seal, tree,
    watch::{LayerId, Watch, held},
};
use rustix::fs::{CWD, IFlags, Timespec, Timestamps, XattrFlags};
use std::{
    collections::HashMap,
    fs::{self, File, Permissions},
    io::Write as _,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{PermissionsExt, chown, symlink},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

const ROUNDS: u64 = 600;
const FILES: usize = 40;
/// Longer than the clock of stamps stands still.
const TICK: Duration = Duration::from_millis(10);

/// One layer under attack.
struct Store {
    disk: Disk,
    attacks: PathBuf,
    layer: OwnedFd,
    id: LayerId,
    watch: Watch,
}

impl Store {
    fn make(world: &World, name: &str) -> Result<Self> {
        let attacks = world.work.join("attacks");
        let source = Path::new(crate::namespace::SOURCES).join("tests/layerwatch/attacks.c");
        cmd!("cc", "-O1", "-Wall", "-o", &attacks, source).ok()?;
        let disk = Disk::make(world, name, 64)?;
        let layer = disk.place.join("layer");
        for number in 0..FILES {
            let directory = layer.join((number % 7).to_string());
            fs::create_dir_all(&directory)?;
            fs::write(directory.join(number.to_string()), [number as u8; 8192])?;
        }
        fs::create_dir(disk.place.join("outside"))?;
        fs::create_dir(disk.place.join("bound"))?;
        fs::hard_link(layer.join("1/1"), disk.place.join("outside/link"))?;
        cmd!("mount", "--bind", &layer, disk.place.join("bound")).ok()?;
        let layer = content::open_directory(&layer)?;
        Ok(Self {
            id: LayerId::of(layer.as_fd())?,
            disk,
            attacks,
            layer,
            watch: Watch::new()?,
        })
    }

    fn begin(&self) -> Result<()> {
        self.watch.begin(held(self.layer.as_fd())?)
    }

    fn standing(&self) -> Option<[u8; 32]> {
        let seals = self.watch.standing(std::slice::from_ref(&self.id))?;
        seals.first().copied()
    }

    /// What the layer holds, read; and its seal.
    fn truth(&self) -> Result<Truth> {
        let read = tree::unpacked(self.layer.as_fd(), &FilesRead::default())?;
        let content = verify::rootfs::merge([read.layer])?.mtree();
        let seal = seal::seal(self.layer.as_fd())?.seal;
        Ok(Truth { seal, content })
    }

    /// Whatever is said to stand must be the seal of what is there now, or one of a state with the same
    /// content: `known` are all states that there were.
    fn judge(
        &self,
        said: Option<[u8; 32]>,
        now: &Truth,
        known: &HashMap<[u8; 32], String>,
    ) -> Result<()> {
        let Some(seal) = said.filter(|seal| *seal != now.seal) else {
            return Ok(());
        };
        let stood = known.get(&seal).context("what stands was never there")?;
        ensure!(*stood == now.content, "missed: {}", now.content);
        Ok(())
    }

    /// Watched from now on; what the test itself has opened is past.
    fn watched(&self) -> Result<()> {
        let since = Instant::now();
        while self.standing().is_none() {
            if let Err(error) = self.begin() {
                ensure!(since.elapsed() < Duration::from_secs(5), "{error:#}");
            }
        }
        Ok(())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = cmd!("umount", "-l", self.disk.place.join("bound")).output();
    }
}

struct Truth {
    seal: [u8; 32],
    content: String,
}

/// What a way leaves open until it is dropped.
enum Left {
    Nothing,
    Open(#[expect(dead_code, reason = "held, not used")] File),
    Process(Running),
}

type Way = fn(&Store, u64) -> Result<Left>;

/// One of the layer's files; 1/1 has another name outside.
fn file(store: &Store, number: u64) -> PathBuf {
    let number = number % FILES as u64;
    let path = format!("layer/{}/{number}", number % 7);
    store.disk.place.join(path)
}

fn writable(path: &Path) -> Result<File> {
    File::options()
        .write(true)
        .open(path)
        .with_context(|| path.display().to_string())
}

fn process(store: &Store, way: &str, number: u64) -> Result<Left> {
    let running = cmd!(&store.attacks, way, file(store, number)).start()?;
    let since = Instant::now();
    while !running.written().contains("done") {
        ensure!(
            since.elapsed() < Duration::from_secs(10),
            "{way}: {}",
            running.written()
        );
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(Left::Process(running))
}

/// Each with its name; and whether what is measured of a layer changes.
const WAYS: [(&str, bool, Way); 27] = [
    ("write", true, |s, n| {
        fs::write(file(s, n), n.to_string().repeat(9))?;
        Ok(Left::Nothing)
    }),
    ("write, still open", true, |s, n| {
        let mut open = writable(&file(s, n))?;
        open.write_all(format!("open {n}").as_bytes())?;
        Ok(Left::Open(open))
    }),
    ("append", true, |s, n| {
        File::options()
            .append(true)
            .open(file(s, n))?
            .write_all(b"more")?;
        Ok(Left::Nothing)
    }),
    ("truncate", true, |s, n| {
        rustix::fs::ftruncate(writable(&file(s, n))?, n % 4096 + 1)?;
        Ok(Left::Nothing)
    }),
    ("map", true, |s, n| process(s, "map", n)),
    ("path-descriptor", true, |s, n| {
        process(s, "path-descriptor", n)
    }),
    ("handle", true, |s, n| process(s, "handle", n)),
    ("ring", true, |s, n| process(s, "ring", n)),
    ("copy", true, |s, n| process(s, "copy", n)),
    ("hole", true, |s, n| process(s, "hole", n)),
    ("by a link from outside", true, |s, n| {
        fs::write(s.disk.place.join("outside/link"), format!("outside {n}"))?;
        Ok(Left::Nothing)
    }),
    ("by a bind mount", true, |s, n| {
        fs::write(s.disk.place.join("bound/2/2"), format!("bound {n}"))?;
        Ok(Left::Nothing)
    }),
    ("another file in its place", true, |s, n| {
        let new = s.disk.place.join("outside/new");
        fs::write(&new, format!("renamed {n}"))?;
        fs::rename(new, file(s, n))?;
        Ok(Left::Nothing)
    }),
    ("moved away and back as another", true, |s, n| {
        let away = s.disk.place.join("outside/away");
        fs::rename(file(s, n), &away)?;
        fs::write(&away, format!("away {n}"))?;
        fs::rename(&away, file(s, n))?;
        Ok(Left::Nothing)
    }),
    ("a directory moved away, changed and back", true, |s, n| {
        let (here, away) = (s.disk.place.join("layer/3"), s.disk.place.join("outside/3"));
        fs::rename(&here, &away)?;
        fs::write(away.join("3"), format!("moved {n}"))?;
        fs::rename(&away, &here)?;
        Ok(Left::Nothing)
    }),
    ("two files exchanged", true, |s, n| {
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        // of one directory, with different content
        fs::write(file(s, n), format!("one {n}"))?;
        rustix::fs::renameat_with(CWD, file(s, n), CWD, file(s, n + 7), flags)?;
        Ok(Left::Nothing)
    }),
    ("removed and made again", true, |s, n| {
        fs::remove_file(file(s, n))?;
        fs::write(file(s, n), format!("again {n}"))?;
        Ok(Left::Nothing)
    }),
    ("an extra file", true, |s, n| {
        fs::write(s.disk.place.join(format!("layer/4/extra-{n}")), "")?;
        Ok(Left::Nothing)
    }),
    ("an extra directory", true, |s, n| {
        fs::create_dir(s.disk.place.join(format!("layer/5/extra-{n}")))?;
        Ok(Left::Nothing)
    }),
    ("a link", true, |s, n| {
        symlink("nowhere", s.disk.place.join(format!("layer/link-{n}")))?;
        Ok(Left::Nothing)
    }),
    ("a file without a name that is given one", true, |s, n| {
        // linkat(2) from /proc, as O_TMPFILE's manual page has it
        let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR;
        let mode = rustix::fs::Mode::RUSR;
        let layer = s.disk.place.join("layer/6");
        let open = File::from(rustix::fs::open(&layer, flags, mode)?);
        (&open).write_all(b"nameless")?;
        let from = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open));
        let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(CWD, from, CWD, layer.join(format!("named-{n}")), follow)?;
        Ok(Left::Open(open))
    }),
    ("a mode", true, |s, n| {
        fs::set_permissions(file(s, n), Permissions::from_mode(0o4700 + (n % 64) as u32))?;
        Ok(Left::Nothing)
    }),
    ("a directory's mode", true, |s, n| {
        let directory = s.disk.place.join("layer/0");
        fs::set_permissions(directory, Permissions::from_mode(0o700 + (n % 64) as u32))?;
        Ok(Left::Nothing)
    }),
    ("an owner", true, |s, n| {
        chown(file(s, n), Some(n as u32 + 1), None)?;
        Ok(Left::Nothing)
    }),
    ("an attribute", true, |s, n| {
        let value = n.to_string();
        rustix::fs::setxattr(
            file(s, n),
            "user.attack",
            value.as_bytes(),
            XattrFlags::empty(),
        )?;
        Ok(Left::Nothing)
    }),
    ("times", false, |s, n| {
        let at = Timespec {
            tv_sec: n as i64,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: at,
            last_modification: at,
        };
        let flags = rustix::fs::AtFlags::empty();
        rustix::fs::utimensat(CWD, file(s, n), &times, flags)?;
        Ok(Left::Nothing)
    }),
    ("flags", false, |s, n| {
        let open = File::open(file(s, n))?;
        let flags = rustix::fs::ioctl_getflags(&open)?;
        rustix::fs::ioctl_setflags(&open, flags ^ IFlags::NODUMP)?;
        Ok(Left::Nothing)
    }),
];

fn end(left: Left) -> Result<()> {
    match left {
        Left::Process(running) => running.stop(Duration::ZERO),
        Left::Open(_) | Left::Nothing => Ok(()),
    }
}

/// While the layer stands, and while what did it still has the file open.
pub fn each_is_seen(world: &World) -> Result<()> {
    let store = Store::make(world, "each")?;
    for (number, (name, changes, way)) in (0..).zip(WAYS) {
        store.watched().with_context(|| format!("before: {name}"))?;
        std::thread::sleep(TICK);
        ensure!(store.standing().is_some(), "{name}: nothing happened yet");
        let left = way(&store, number).with_context(|| name.to_owned())?;
        ensure!(!changes || store.standing().is_none(), "{name}: not seen");
        if let Left::Process(_) | Left::Open(_) = left {
            ensure!(
                store.begin().is_err(),
                "{name}: watched while it is written"
            );
        }
        end(left)?;
        ensure!(
            !changes || store.standing().is_none(),
            "{name}: vouched for again by nobody"
        );
    }
    // neither changes anything
    store.watched()?;
    cmd!("cat", file(&store, 8)).ok()?;
    ensure!(store.standing().is_some(), "a file that was read");
    fs::read_dir(store.disk.place.join("layer/1"))?.try_for_each(|entry| entry.map(drop))?;
    ensure!(store.standing().is_some(), "a directory that is listed");
    Ok(())
}

/// xorshift64 (Marsaglia 2003): a failure names its round.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state >> 11
}

pub fn at_random_moments(world: &World) -> Result<()> {
    let store = Store::make(world, "random")?;
    let mut state = 0x9e37_79b9_7f4a_7c15;
    // How long a beginning takes, so that attacks fall into it.
    store.watched()?;
    fs::write(file(&store, 0), "begins")?;
    let since = Instant::now();
    store.begin()?;
    let takes = since.elapsed();
    let (mut stood, mut seen) = (0, 0);
    let mut known = HashMap::new();
    for round in 0..ROUNDS {
        std::thread::sleep(TICK);
        let before = store.truth()?;
        known.insert(before.seal, before.content);
        std::thread::sleep(TICK);
        let (name, _, way) = WAYS[random(&mut state) as usize % WAYS.len()];
        let delay = takes.mul_f64(random(&mut state) as f64 % 2000.0 / 1000.0);
        let done = std::thread::scope(|scope| -> Result<()> {
            let attack = scope.spawn(|| {
                std::thread::sleep(delay);
                way(&store, FILES as u64 * 8 + round)
            });
            // some begin before it, some during it, some after
            let mut begun = false;
            while !attack.is_finished() {
                begun |= store.begin().is_ok();
            }
            let left = attack.join().ok().context("the attack panicked")??;
            let said = store.standing();
            let again = store.begin();
            let now_said = store.standing();
            let now = store.truth()?;
            store.judge(said, &now, &known)?;
            store.judge(now_said, &now, &known)?;
            // stores into a mapping may go on after this
            if let Left::Nothing = left {
                known.insert(now.seal, now.content);
            }
            stood += u32::from(now_said.is_some());
            seen += u32::from(begun && said.is_none());
            if let (Left::Process(_), Ok(())) = (&left, &again) {
                anyhow::bail!("watched while it is written");
            }
            end(left)
        });
        done.with_context(|| format!("round {round}: {name}"))?;
    }
    println!("{ROUNDS} rounds, a beginning takes {takes:?}: {seen} ended a watch, {stood} stood");
    ensure!(
        seen > 50 && stood > 50,
        "the attacks fell beside the watches"
    );
    Ok(())
}

pub fn a_queue_that_runs_over(world: &World) -> Result<()> {
    let store = Store::make(world, "overflow")?;
    store.watched()?;
    let most: usize = fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events")?
        .trim()
        .parse()?;
    // far away from the layer; nobody listens meanwhile
    let elsewhere = store.disk.place.join("outside/many");
    fs::create_dir(&elsewhere)?;
    let empty = elsewhere.join("0");
    File::create(&empty)?;
    ensure!(store.standing().is_some(), "elsewhere is not in the layer");
    for number in 0..=most / 2 {
        // an event for the directory and one for the file, each another one
        fs::create_dir(elsewhere.join(format!("d{number}")))?;
        chown(elsewhere.join(format!("d{number}")), Some(1), None)?;
        if number % 4096 == 0 {
            fs::write(file(&store, 3), "among them")?;
        }
    }
    ensure!(
        store.standing().is_none(),
        "lost events were taken for none"
    );
    store.watched()
}

/// The engine may unmount its store; mounted again, the watch is still one of the same file system.
pub fn an_unmounted_store(world: &World) -> Result<()> {
    let mut store = Store::make(world, "unmounted")?;
    store.watched()?;
    cmd!("umount", store.disk.place.join("bound")).ok()?;
    // our own descriptor is the engine's
    store.layer = content::open_directory(Path::new("/"))?;
    store
        .disk
        .unmount()
        .context("the watch holds the engine's mount")?;
    store.disk.mount()?;
    store.layer = content::open_directory(&store.disk.place.join("layer"))?;
    let same = LayerId::of(store.layer.as_fd())? == store.id;
    ensure!(same, "mounted again it is the same file system");
    ensure!(store.standing().is_some(), "nothing happened");
    fs::write(file(&store, 5), "changed on the second mount")?;
    ensure!(store.standing().is_none(), "a change was not seen");
    Ok(())
}
