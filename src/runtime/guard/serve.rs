//! The guard at work: a verb asks whether to start or to enter, the host service asks for a quote, and
//! the end of the container, of the keeper or of the vTPM ends the rest.

use super::{
    Certificate, ContainerEvidence, FromHost, FromVerb, Guarded, Kept, SOCKET, list_text::ListText,
    swtpm,
};
use crate::{
    ending::{Holdings, has_ended},
    host,
    ipc::{Answer, Channel, Refused},
    kept::KeptVtpm,
    state::RunDir,
};
use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    time::{Duration, Instant},
};
use verify::{
    event::{Event, Fault},
    id::RunId,
    policy::{Admission, Programs},
};

/// A verb says what it wants at once, or loses its turn.
const VERB_PATIENCE: Duration = Duration::from_secs(5);
/// A TPM takes up to a second for a signature, and others may wait for theirs.
const CERTIFICATE_PATIENCE: Duration = Duration::from_secs(20);
/// Between two attempts to find a restarted host service.
const REJOIN_PAUSE_MS: i64 = 1000;

pub struct Service {
    run_id: RunId,
    guarded: Guarded,
    holdings: Holdings,
    keeper: Channel,
    /// `None` while the host service is gone: then there are no challenges, and nothing else changes.
    host: Option<Channel>,
    listener: UnixListener,
    vtpm_end: OwnedFd,
    started: bool,
    run_dir: PathBuf,
    vtpm_state: PathBuf,
}

/// Why the guard stops.
enum End {
    ContainerEnded,
    /// Without keeper or vTPM the container cannot be vouched for, so it must not go on.
    KillContainer(&'static str),
}

impl Service {
    pub fn new(
        run_id: RunId,
        guarded: Guarded,
        holdings: Holdings,
        run_dir: &RunDir,
        keeper: Channel,
        host: Channel,
    ) -> Result<Self> {
        let vtpm_state = swtpm::state_of(&run_dir.bounded());
        let run_dir = run_dir.path();
        let socket = run_dir.join(SOCKET);
        let listener = UnixListener::bind(&socket)
            .with_context(|| format!("cannot listen on {}", socket.display()))?;
        let vtpm_end = swtpm::pidfd(&guarded.swtpm)?;
        let run_dir = run_dir.to_owned();
        Ok(Self {
            run_id,
            guarded,
            holdings,
            keeper,
            host: Some(host),
            listener,
            vtpm_end,
            started: false,
            run_dir,
            vtpm_state,
        })
    }

    /// Tells create that from now on the container has a guard.
    pub fn announce(self, create: &Channel, kept: &Kept) -> Result<Self> {
        create.send(&Answer::Ok(kept), &[])?;
        Ok(self)
    }

    pub fn run(mut self) -> Result<()> {
        let end = loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some(end)) => break end,
                Err(error) => {
                    eprintln!("attestrun guard: {error:#}");
                    break End::KillContainer("the guard failed");
                }
            }
        };
        if let End::KillContainer(why) = end {
            eprintln!("attestrun guard: {why}: the container is killed");
            self.holdings.end();
        }
        let kept = self.guarded.kept.take().filter(KeptVtpm::has_run);
        let shut_down = kept.is_some().then(|| self.guarded.journal.shut_down());
        self.guarded.swtpm.kill().ok();
        self.guarded.swtpm.wait().ok();
        if let (Some(kept), Some(shut_down)) = (kept, shut_down)
            && let Err(error) = shut_down.and_then(|()| kept.ended(&self.vtpm_state))
        {
            eprintln!("attestrun guard: the vTPM's state is lost: {error:#}");
        }
        std::fs::remove_file(self.run_dir.join(SOCKET)).ok();
        Ok(())
    }

    /// Waits for one thing to happen and handles it.
    fn turn(&mut self) -> Result<Option<End>> {
        let mut fds = vec![
            PollFd::new(&self.holdings.pidfd, PollFlags::IN),
            PollFd::from_borrowed_fd(self.keeper.stream().as_fd(), PollFlags::IN),
            PollFd::new(&self.vtpm_end, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        if let Some(host) = &self.host {
            fds.push(PollFd::from_borrowed_fd(
                host.stream().as_fd(),
                PollFlags::IN,
            ));
        }
        let pause = Timespec {
            tv_sec: REJOIN_PAUSE_MS / 1000,
            tv_nsec: 0,
        };
        let timeout = self.host.is_none().then_some(&pause);
        match poll(&mut fds, timeout) {
            Err(rustix::io::Errno::INTR) => return Ok(None),
            result => result.context("guard: poll")?,
        };
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let is_ready = |index: usize| ready.get(index).copied().unwrap_or(false);
        if is_ready(0) {
            return Ok(Some(End::ContainerEnded));
        }
        if is_ready(1) {
            // the keeper says nothing: this is its end, or the container's, which it saw first
            let ended = has_ended(&self.holdings.pidfd);
            return Ok(Some(if ended {
                End::ContainerEnded
            } else {
                End::KillContainer("the keeper is gone")
            }));
        }
        if is_ready(2) {
            return Ok(Some(End::KillContainer("the vTPM is gone")));
        }
        if is_ready(3) {
            let (stream, _) = self.listener.accept().context("guard: accept")?;
            self.verb(stream);
        }
        if is_ready(4) {
            self.asked_by_host();
        }
        if self.host.is_none() {
            self.rejoin();
        }
        Ok(None)
    }

    fn verb(&mut self, stream: UnixStream) {
        let verb = Channel::new(stream);
        let mut converse = || -> Result<()> {
            verb.set_timeout(VERB_PATIENCE)?;
            let Some((request, _)) = verb.recv()? else {
                return Ok(());
            };
            let answer = match request {
                FromVerb::Start => self.start(),
                FromVerb::Exec { process } => self.guarded.enter(&process, &self.holdings),
            };
            verb.send(&Answer::of(answer), &[])
        };
        if let Err(error) = converse() {
            eprintln!("attestrun guard: a verb: {error:#}");
        }
    }

    fn start(&mut self) -> Result<PathBuf> {
        if self.started {
            return Err(Refused("refused: the container was started before".into()).into());
        }
        self.certified()?;
        if let Some(kept) = &mut self.guarded.kept {
            kept.runs(whose(&self.guarded.admitted.admission))?;
        }
        let path = self.guarded.start(&self.holdings)?;
        self.started = true;
        Ok(path)
    }

    /// Waits for the certificate of the vTPM, which the host service makes after create had its answer.
    fn certified(&mut self) -> Result<()> {
        let deadline = Instant::now() + CERTIFICATE_PATIENCE;
        loop {
            match &self.guarded.certificate {
                Certificate::Settled => return Ok(()),
                Certificate::Failed(why) => bail!("the vTPM has no certificate: {why}"),
                Certificate::Awaited(_) => {}
            }
            let host = self.host.as_ref().context(
                "the host service ended before it certified the vTPM: delete the container and create it again",
            )?;
            ensure!(
                Instant::now() < deadline,
                "the host service did not certify the vTPM within {} s",
                CERTIFICATE_PATIENCE.as_secs()
            );
            let mut fds = [PollFd::from_borrowed_fd(
                host.stream().as_fd(),
                PollFlags::IN,
            )];
            let second = Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            if poll(&mut fds, Some(&second)).is_ok_and(|ready| ready > 0) {
                self.asked_by_host();
            }
        }
    }

    fn asked_by_host(&mut self) {
        let Some(host) = &self.host else { return };
        let request = host.set_timeout(VERB_PATIENCE).and_then(|()| host.recv());
        let result = match request {
            Ok(Some((FromHost::Certificate(certificate), _))) => {
                let taken = self.guarded.take_certificate(certificate);
                host.send(&Answer::of(taken), &[])
            }
            Ok(Some((FromHost::Quote { qualifying_data }, _))) => {
                let answer = Answer::of(self.guarded.quote(&qualifying_data));
                let list = self
                    .guarded
                    .list
                    .as_ref()
                    .map(|list| list.statement().as_fd());
                host.send(&answer, list.as_slice())
            }
            Ok(None) => Err(anyhow::anyhow!("the host service is gone")),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            eprintln!("attestrun guard: {error:#}");
            self.host = None;
        }
    }

    /// Offers a restarted host service a new channel to this guard.
    fn rejoin(&mut self) {
        let Some(record) = &self.guarded.record else {
            return;
        };
        let rejoin = || -> Result<Channel> {
            let (mine, theirs) = Channel::pair()?;
            let service = UnixStream::connect(host::CONTROL).context("no host service")?;
            host::Client::over(service, VERB_PATIENCE)?.rejoin(
                &self.run_id,
                record,
                &theirs.into_fd(),
                &self.holdings.pidfd,
            )?;
            Ok(mine)
        };
        if let Ok(channel) = rejoin() {
            self.host = Some(channel);
        }
    }
}

/// Whose a vTPM's kept state is: nobody else's container gets it, whatever its id.
fn whose(admission: &Admission) -> String {
    match admission.programs() {
        Programs::Listed(listed) => format!("tenant {}", listed.signer().tenant()),
        _ => format!("rule {}", admission.rule()),
    }
}

impl Guarded {
    fn take_certificate(&mut self, certificate: Answer<String>) -> Result<()> {
        ensure!(
            matches!(self.certificate, Certificate::Awaited(_)),
            "no certificate is awaited"
        );
        let taken = certificate.into_result().and_then(|text| {
            let der = BASE64.decode(text).context("the certificate's base64")?;
            self.journal.deliver(&der)
        });
        self.certificate = match &taken {
            Ok(()) => Certificate::Settled,
            Err(error) => Certificate::Failed(format!("{error:#}")),
        };
        taken
    }

    /// The vTPM's quote of now, and the log that explains it.
    fn quote(&self, qualifying_data: &[u8; 32]) -> Result<ContainerEvidence> {
        let (quote, log) = self.journal.quote(&self.identity.aik, qualifying_data)?;
        // without a list the record says `none`, and so does the event in PCR 7
        let signature = self.list.as_ref().map_or(&[][..], ListText::signature);
        Ok(ContainerEvidence {
            attest: BASE64.encode(quote.attest),
            signature: BASE64.encode(quote.signature),
            ak: BASE64.encode(self.identity.aik_public()?),
            ek: BASE64.encode(self.identity.ek_public()?),
            log: BASE64.encode(log),
            siglist_signature: BASE64.encode(signature),
        })
    }

    /// A denial or a defect, for everybody to see in PCR 8.
    pub(super) fn fault(&self, kind: &str, detail: &str) -> Result<()> {
        self.journal.record(&Event::Fault(Fault {
            kind: kind.to_owned(),
            detail: detail.to_owned(),
        }))
    }
}
