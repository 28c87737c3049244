//! `attestrun layerwatch`, a process of its own that a host may have: it watches the directories of layers
//! (`content::watch`), so that a guard needs not look at each file of an image to know that none changed.
//!
//! Its word is root's and no better: only root reaches its socket, both ends ask the kernel who the other
//! is, and evidence names the mode (`watched`). It has no network and no TPM, decides nothing, and holds
//! nothing that lives longer than itself: without it, or without an answer in time, guards walk.

use crate::ipc::Channel;
use anyhow::{Context, Result, ensure};
use content::{
    stack::Stack,
    watch::{self, LayerId, Watch},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, DirBuilder, File},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, MetadataExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

const DIR: &str = "/run/attestrun-layerwatch";
const SOCKET: &str = "/run/attestrun-layerwatch/layers.sock";
/// A guard that has heard nothing by then walks.
const PATIENCE: Duration = Duration::from_millis(500);
/// Layers that wait for their watch to begin.
const WAITING: usize = 128;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Request {
    /// Answered with the seals of all these layers, or with none.
    Standing(Vec<LayerId>),
    /// Watch this layer from now on. Descriptor: [`watch::held`]. No answer.
    Begin,
}

type Standing = Option<Vec<[u8; 32]>>;

/// The service, until it is ended.
pub fn run() -> Result<()> {
    content::ignore_lease_signals();
    let _one = place()?;
    let watch = Arc::new(Watch::new()?);
    let listener = listen()?;
    let (waiting, begin) = sync_channel(WAITING);
    let beginning = watch.clone();
    thread::spawn(move || begin_each(&beginning, &begin));
    eprintln!("attestrun layerwatch: listening on {SOCKET}");
    loop {
        let mut fds = [
            PollFd::new(&*watch, PollFlags::IN),
            PollFd::new(&listener, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("poll"),
        }
        let asked = !fds[1].revents().is_empty();
        watch.take_events();
        if asked && let Err(error) = serve(&listener, &watch, &waiting) {
            eprintln!("attestrun layerwatch: {error:#}");
        }
    }
}

/// Our directory, root's alone, and the right to be the only one in it.
fn place() -> Result<File> {
    let mut private = DirBuilder::new();
    private.recursive(true).mode(0o700);
    private.create(DIR).with_context(|| format!("make {DIR}"))?;
    let found = fs::symlink_metadata(DIR)?;
    ensure!(
        found.is_dir() && found.uid() == 0 && found.mode() & 0o077 == 0,
        "{DIR} must be a directory of root's alone (mode 0700)"
    );
    let path = Path::new(DIR).join("lock");
    let file = File::create(&path).with_context(|| format!("open {}", path.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("another layerwatch runs (it holds {})", path.display()))?;
    Ok(file)
}

fn listen() -> Result<UnixListener> {
    match fs::remove_file(SOCKET) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {SOCKET}"));
        }
        _ => {}
    }
    UnixListener::bind(SOCKET).with_context(|| format!("listen on {SOCKET}"))
}

/// One guard, until it has asked all that it wants to know.
fn serve(listener: &UnixListener, watch: &Watch, waiting: &SyncSender<OwnedFd>) -> Result<()> {
    let (stream, _) = listener.accept().context("accept")?;
    let peer = of_root(stream)?;
    while let Some((request, fds)) = peer.recv()? {
        match request {
            Request::Standing(layers) => peer.send(&watch.standing(&layers), &[])?,
            Request::Begin => {
                for layer in fds {
                    // with too many waiting it is watched after the next create
                    waiting.try_send(layer).ok();
                }
            }
        }
    }
    Ok(())
}

fn begin_each(watch: &Watch, layers: &Receiver<OwnedFd>) {
    for layer in layers {
        if let Err(error) = watch.begin(layer) {
            eprintln!("attestrun layerwatch: a layer is not watched: {error:#}");
        }
    }
}

/// The other end, which must be root's.
fn of_root(stream: UnixStream) -> Result<Channel> {
    let peer = rustix::net::sockopt::socket_peercred(&stream).context("SO_PEERCRED")?;
    ensure!(
        peer.uid.is_root(),
        "the other end is user {}, not root",
        peer.uid.as_raw()
    );
    let channel = Channel::new(stream);
    channel.set_timeout(PATIENCE)?;
    Ok(channel)
}

/// Asked by a guard: the seals of the stack's layers, as far as they are known without a look at them.
pub fn standing(stack: &Stack) -> Standing {
    let ask = || -> Result<Standing> {
        let Some(service) = connect()? else {
            return Ok(None);
        };
        let layers: Vec<LayerId> = stack.layers().map(LayerId::of).collect::<Result<_>>()?;
        let seals: Standing = service.ask(&Request::Standing(layers), &[])?;
        let all = stack.layers().count();
        Ok(seals.filter(|seals| seals.len() == all))
    };
    ask().unwrap_or_else(|error| {
        eprintln!("attestrun guard: the watch of layers does not answer: {error:#}");
        None
    })
}

/// Told by a guard: these layers are to be watched from now on.
pub fn begin(stack: &Stack) {
    let tell = || -> Result<()> {
        let Some(service) = connect()? else {
            return Ok(());
        };
        for layer in stack.layers() {
            service.send(&Request::Begin, &[watch::held(layer)?.as_fd()])?;
        }
        Ok(())
    };
    if let Err(error) = tell() {
        eprintln!("attestrun guard: the watch of layers cannot be asked for: {error:#}");
    }
}

/// `None`: this host has no such service.
fn connect() -> Result<Option<Channel>> {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    match UnixStream::connect(SOCKET) {
        Ok(stream) => of_root(stream).map(Some),
        Err(error) if [NotFound, ConnectionRefused].contains(&error.kind()) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("connect to {SOCKET}")),
    }
}
