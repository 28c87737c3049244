//! Carries out what a container's clients may do, one command at a time.
//!
//! A TPM has room for three objects and three sessions, one of which the guard's attestation key keeps.
//! So between two commands a client's objects and sessions are outside, as contexts that only this TPM
//! can read (Part 1, 30), and are loaded for the command that names them. A client knows its objects by
//! handles of its own; a session keeps its handle wherever it is.

use super::table::{
    CONTEXT_LOAD, CONTEXT_SAVE, EVENT_SEQUENCE_COMPLETE, FLUSH_CONTEXT, Returns, SEQUENCE_COMPLETE,
    SEQUENCE_UPDATE,
};
use super::{Own, Permit, Refusal, Then, is_session, is_transient, judge, response};
use crate::channel::{ATTEMPTS, Error, Line, pause};
use crate::rc::Rc;
use crate::wire::{
    CAP_HANDLES, Code, HEADER, Malformed, Reader, ST_NO_SESSIONS, ST_SESSIONS, Writer,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Objects of one client.
pub const OBJECTS_OF_CLIENT: usize = 16;
/// Objects of all clients.
pub const OBJECTS: usize = 128;
/// Sessions of all clients, the saved ones among them; a TPM has 64.
pub const SESSIONS: usize = 48;
/// Sessions that clients have saved and nobody has loaded again.
pub const SAVED: usize = 16;
/// "Oldest session is too old" (TPM_RC_CONTEXT_GAP).
const CONTEXT_GAP: u32 = 0x901;

/// One client of the container: what is its own is gone when it is.
pub type ClientId = u64;

#[derive(Debug, Default)]
struct Client {
    /// The client's handle → context.
    objects: BTreeMap<u32, Vec<u8>>,
    sessions: BTreeMap<u32, Vec<u8>>,
    last_handle: u32,
}

/// The container's side of a vTPM.
#[derive(Debug)]
pub struct Broker {
    line: Arc<Line>,
    clients: BTreeMap<ClientId, Client>,
    /// Oldest first.
    saved: VecDeque<u32>,
    /// All sessions, oldest first.
    sessions: VecDeque<u32>,
}

/// A response of the TPM.
struct Answer {
    code: u32,
    bytes: Vec<u8>,
}

/// What came instead of the wanted answer: the TPM's refusal, for the client to see.
enum No {
    Refused(u32),
    Failed(Error),
}

impl From<Error> for No {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Broker {
    pub fn new(line: Arc<Line>) -> Self {
        Self {
            line,
            clients: BTreeMap::new(),
            saved: VecDeque::new(),
            sessions: VecDeque::new(),
        }
    }

    /// The response to `command` from `client`. An error is the end of the vTPM for everybody.
    pub fn answer(&mut self, client: ClientId, command: &[u8]) -> Result<Vec<u8>, Error> {
        let own = self.own(client);
        let permit = match judge(command, &own) {
            Ok(permit) => permit,
            Err(refusal) => return Ok(refusal.response()),
        };
        match permit.then {
            Then::Forward => match self.room_for(&permit, client) {
                Ok(()) => self.forward(client, &permit),
                Err(refusal) => Ok(refusal.response()),
            },
            Then::Flush(handle) => self.flush(client, handle),
            Then::List { from, count } => Ok(list(&own, from, count)),
        }
    }

    /// Whether anything is still this client's.
    pub fn has(&self, client: ClientId) -> bool {
        let of = |c: &Client| !c.objects.is_empty() || !c.sessions.is_empty();
        self.clients.get(&client).is_some_and(of)
    }

    /// The client has ended.
    pub fn forget(&mut self, client: ClientId) -> Result<(), Error> {
        let gone = self.clients.remove(&client).unwrap_or_default();
        gone.sessions
            .into_keys()
            .try_for_each(|session| self.end(session))
    }

    fn own(&self, client: ClientId) -> Own {
        let mut own = Own {
            saved: self.saved.iter().copied().collect(),
            ..Own::default()
        };
        if let Some(client) = self.clients.get(&client) {
            own.objects.extend(client.objects.keys());
            own.sessions.extend(client.sessions.keys());
        }
        own
    }

    fn room_for(&self, permit: &Permit<'_>, client: ClientId) -> Result<(), Refusal> {
        let objects = |c: &Client| c.objects.len();
        let own = self.clients.get(&client).map_or(0, objects);
        let all: usize = self.clients.values().map(objects).sum();
        let adds_object = matches!(permit.row.returns, Returns::AnObject | Returns::AnyContext);
        if adds_object && (own >= OBJECTS_OF_CLIENT || all >= OBJECTS) {
            return Err(Refusal::OBJECTS);
        }
        if permit.row.returns == Returns::ASession && self.sessions.len() >= SESSIONS {
            return Err(Refusal::SESSIONS);
        }
        Ok(())
    }

    fn flush(&mut self, client: ClientId, handle: u32) -> Result<Vec<u8>, Error> {
        let own = self.clients.entry(client).or_default();
        let was_object = own.objects.remove(&handle).is_some();
        own.sessions.remove(&handle);
        self.saved.retain(|saved| *saved != handle);
        if !was_object {
            self.end(handle)?;
        }
        Ok(response(0))
    }

    /// Loads what the command names, has it carried out, and takes everything out again.
    fn forward(&mut self, client: ClientId, permit: &Permit<'_>) -> Result<Vec<u8>, Error> {
        let mut loaded = BTreeMap::new();
        let answer = match self.load(client, permit, &mut loaded) {
            Ok(()) => self
                .transmit(&with_handles(permit, &loaded))
                .map_err(No::from),
            Err(no) => Err(no),
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(No::Refused(code)) => Answer {
                code,
                bytes: response(code),
            },
            Err(No::Failed(error)) => return Err(error),
        };
        let done = answer.code == 0;
        let ends = done && [SEQUENCE_COMPLETE, EVENT_SEQUENCE_COMPLETE].contains(&permit.row.code);
        for (handle, place) in loaded {
            if is_session(handle) {
                let given = done && permit.row.code == CONTEXT_SAVE;
                self.put_away(client, handle, given)?;
            } else if ends {
                self.client(client).objects.remove(&handle);
            } else {
                if permit.row.code == SEQUENCE_UPDATE {
                    self.renew(client, handle, place)?;
                }
                self.flush_real(place)?;
            }
        }
        match done && permit.row.returns != Returns::Nothing {
            true => self.take_in(client, answer.bytes),
            false => Ok(answer.bytes),
        }
    }

    fn client(&mut self, client: ClientId) -> &mut Client {
        self.clients.entry(client).or_default()
    }

    /// Handle → where it is now, for each object and session that the command names.
    fn load(
        &mut self,
        client: ClientId,
        permit: &Permit<'_>,
        loaded: &mut BTreeMap<u32, u32>,
    ) -> Result<(), No> {
        let named = permit.handles.iter().chain(&permit.sessions);
        let named: Vec<u32> = named
            .copied()
            .filter(|handle| is_transient(*handle) || is_session(*handle))
            .collect();
        for handle in named {
            if loaded.contains_key(&handle) {
                continue;
            }
            let own = self.client(client);
            let contexts = match is_session(handle) {
                true => &own.sessions,
                false => &own.objects,
            };
            let Some(context) = contexts.get(&handle).cloned() else {
                return Err(No::Refused(Refusal::HANDLE.code()));
            };
            let place = self.context_load(&context)?;
            loaded.insert(handle, place);
        }
        Ok(())
    }

    /// A session that was loaded is saved again; one that has ended by its use is forgotten, and one whose
    /// context the client has taken (`given`) is nobody's until somebody loads it.
    fn put_away(&mut self, client: ClientId, session: u32, given: bool) -> Result<(), Error> {
        if given {
            self.client(client).sessions.remove(&session);
            self.saved.push_back(session);
            if self.saved.len() > SAVED
                && let Some(oldest) = self.saved.pop_front()
            {
                self.end(oldest)?;
            }
            return Ok(());
        }
        match self.context_save(session) {
            Ok(context) => {
                self.client(client).sessions.insert(session, context);
            }
            Err(No::Refused(CONTEXT_GAP)) => {
                // the oldest one, whose context holds up all others
                let oldest = self.sessions.front().copied().unwrap_or(session);
                self.end(oldest)?;
                match self.context_save(session) {
                    Ok(context) => {
                        self.client(client).sessions.insert(session, context);
                    }
                    Err(No::Refused(_)) => self.end(session)?,
                    Err(No::Failed(error)) => return Err(error),
                }
            }
            Err(No::Refused(_)) => self.drop_session(session),
            Err(No::Failed(error)) => return Err(error),
        }
        Ok(())
    }

    /// The state of a hash sequence has changed.
    fn renew(&mut self, client: ClientId, handle: u32, place: u32) -> Result<(), Error> {
        match self.context_save(place) {
            Ok(context) => {
                self.client(client).objects.insert(handle, context);
            }
            Err(No::Refused(_)) => {
                self.client(client).objects.remove(&handle);
            }
            Err(No::Failed(error)) => return Err(error),
        }
        Ok(())
    }

    /// What the response brings is the client's: an object under a handle of its own.
    fn take_in(&mut self, client: ClientId, mut bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        let place = HEADER..HEADER + 4;
        let real = Reader::new(bytes.get(place.clone()).unwrap_or_default()).u32();
        let real = real.map_err(|what| self.malformed(what))?;
        if is_session(real) {
            self.saved.retain(|saved| *saved != real);
            if !self.sessions.contains(&real) {
                self.sessions.push_back(real);
            }
            self.put_away(client, real, false)?;
            return Ok(bytes);
        }
        match self.context_save(real) {
            Ok(context) => {
                self.flush_real(real)?;
                let handle = self.client(client).keep(context);
                if let Some(field) = bytes.get_mut(place) {
                    field.copy_from_slice(&handle.to_be_bytes());
                }
                Ok(bytes)
            }
            Err(No::Refused(code)) => {
                self.flush_real(real)?;
                Ok(response(code))
            }
            Err(No::Failed(error)) => Err(error),
        }
    }

    /// Ends a session, loaded or not.
    fn end(&mut self, session: u32) -> Result<(), Error> {
        self.drop_session(session);
        self.flush_real(session)
    }

    fn drop_session(&mut self, session: u32) {
        self.sessions.retain(|one| *one != session);
        self.saved.retain(|one| *one != session);
        for client in self.clients.values_mut() {
            client.sessions.remove(&session);
        }
    }

    // --- commands of our own ---

    fn flush_real(&mut self, handle: u32) -> Result<(), Error> {
        // a handle that is gone already is no harm
        self.simple(FLUSH_CONTEXT, &handle.to_be_bytes()).map(drop)
    }

    fn context_load(&mut self, context: &[u8]) -> Result<u32, No> {
        let answer = self.simple(CONTEXT_LOAD, context)?;
        match answer.code {
            0 => {
                let body = answer.bytes.get(HEADER..).unwrap_or_default();
                let handle = Reader::new(body).u32();
                handle.map_err(|what| No::Failed(self.malformed(what)))
            }
            code => Err(No::Refused(code)),
        }
    }

    fn context_save(&mut self, handle: u32) -> Result<Vec<u8>, No> {
        let answer = self.simple(CONTEXT_SAVE, &handle.to_be_bytes())?;
        match answer.code {
            0 => Ok(answer.bytes.get(HEADER..).unwrap_or_default().to_vec()),
            code => Err(No::Refused(code)),
        }
    }

    fn simple(&mut self, code: u32, body: &[u8]) -> Result<Answer, Error> {
        let size = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
        let command = Writer::default().u16(ST_NO_SESSIONS).u32(size).u32(code);
        self.transmit(&command.bytes(body).finish())
    }

    /// Until the TPM has executed it (RETRY happens).
    fn transmit(&mut self, command: &[u8]) -> Result<Answer, Error> {
        let mut attempt = 1;
        loop {
            let bytes = self.line.containers_turn(command)?;
            let code = header(&bytes).map_err(|what| self.malformed(what))?;
            if !Rc::new(code).asks_for_retry() || attempt == ATTEMPTS {
                return Ok(Answer { code, bytes });
            }
            std::thread::sleep(pause(attempt));
            attempt += 1;
        }
    }

    /// Nothing that this TPM says is believed any more, by the guard neither.
    fn malformed(&self, what: Malformed) -> Error {
        self.line.give_up();
        let command = Code::CONTAINERS;
        Error::Malformed { command, what }
    }
}

impl Client {
    /// A new object's handle: in the range of transient objects, and not used before if there is another.
    fn keep(&mut self, context: Vec<u8>) -> u32 {
        let mut handle = self.last_handle;
        loop {
            handle = 0x8000_0000 | (handle.wrapping_add(1) & 0x00FF_FFFF);
            if !self.objects.contains_key(&handle) {
                break;
            }
        }
        self.last_handle = handle;
        self.objects.insert(handle, context);
        handle
    }
}

/// The response code; the size was checked when the response came.
fn header(response: &[u8]) -> Result<u32, Malformed> {
    let mut reader = Reader::new(response);
    let tag = reader.u16()?;
    reader.u32()?;
    let code = reader.u32()?;
    match [ST_NO_SESSIONS, ST_SESSIONS].contains(&tag) {
        true => Ok(code),
        false => Err(Malformed::Tag(tag)),
    }
}

/// The command with the places of its objects in its handle area.
fn with_handles(permit: &Permit<'_>, loaded: &BTreeMap<u32, u32>) -> Vec<u8> {
    let mut command = permit.command.to_vec();
    let fields = command.get_mut(HEADER..).unwrap_or_default().chunks_mut(4);
    for (field, handle) in fields.zip(&permit.handles) {
        if let Some(place) = loaded.get(handle) {
            field.copy_from_slice(&place.to_be_bytes());
        }
    }
    command
}

/// The answer to TPM2_GetCapability for transient objects, or for loaded or saved sessions (Part 3, 30.2).
fn list(own: &Own, from: u32, count: u32) -> Vec<u8> {
    let kind = from >> 24;
    let all: Vec<u32> = match kind {
        0x80 => own.objects.iter().copied().collect(),
        0x02 => own.sessions.iter().copied().collect(),
        _ => own.saved.iter().copied().collect(),
    };
    // sessions are listed by their number, whatever their kind
    let number = |handle: &u32| handle & 0x00FF_FFFF;
    let all = all
        .into_iter()
        .filter(|handle| number(handle) >= number(&from));
    let all: Vec<u32> = all.collect();
    let fit = all.len().min(count as usize);
    let body = Writer::default()
        .u8(u8::from(fit < all.len()))
        .u32(CAP_HANDLES)
        .u32(fit as u32);
    let body = all
        .iter()
        .take(fit)
        .fold(body, |body, handle| body.u32(*handle));
    let body = body.finish();
    let size = (HEADER + body.len()) as u32;
    let header = Writer::default().u16(ST_NO_SESSIONS).u32(size).u32(0);
    header.bytes(&body).finish()
}
