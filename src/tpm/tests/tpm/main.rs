//! The vTPM client and the host TPM against real swtpm processes, with tpm2-tools as a second judge.

mod attacks; // what the holder of a vTPM's data channel can and cannot do
mod checkquote; // tpm2_checkquote
mod filter; // what a container may say, and what it cannot reach
#[cfg(feature = "host")]
mod host; // the host TPM, played by an swtpm over loopback TCP: a software root
#[cfg(feature = "host")]
mod kept; // what kept states of vTPMs rest on
mod peer; // a vTPM that does not keep to the rules
mod sealed; // what a challenger seals to a vTPM, and the ways to it
#[cfg_attr(
    not(feature = "host"),
    allow(dead_code, reason = "it starts host TPMs as well")
)]
mod spawn; // swtpm and tpm2-tools as child processes
mod vtpm; // a container's vTPM
#[cfg(feature = "host")]
mod vtpm_ca; // a host's CA, and the certificate in a vTPM

use tpm::rc::Rc;
use tpm::wire::{Code, Command, Response, Writer};
use verify::pcr::PcrIndex;

fn pcr(index: u32) -> PcrIndex {
    PcrIndex::new(index).expect("a PCR")
}

/// The same data channel without the client: what a container could send.
struct Raw(std::os::unix::net::UnixStream);

impl Raw {
    fn send(&mut self, command: &Command) -> Result<Response, Rc> {
        use std::io::{Read as _, Write as _};
        self.0.write_all(&command.encode()).expect("sent");
        let mut buffer = [0; tpm::wire::MAX_MESSAGE];
        let count = self.0.read(&mut buffer).expect("an answer");
        command
            .decode(&buffer[..count])
            .expect("a well-formed answer")
    }

    /// A command on one handle with an empty password.
    fn on(&mut self, code: Code, handle: u32, parameters: Writer) -> Result<Response, Rc> {
        let command = Command::new(code)
            .handle(handle)
            .password(b"")
            .parameters(parameters);
        self.send(&command)
    }
}
