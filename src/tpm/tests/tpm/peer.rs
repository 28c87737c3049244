//! A vTPM that does not keep to the rules: what the client makes of its answers.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use tpm::vtpm::{Error, Vtpm};

const GOOD: &[u8] = &[0x80, 2, 0, 0, 0, 19, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0];
const RETRY: &[u8] = &[0x80, 1, 0, 0, 0, 10, 0, 0, 9, 0x22];
const TESTING: &[u8] = &[0x80, 1, 0, 0, 0, 10, 0, 0, 9, 0x0A];

/// Gives these answers, one for each command, then closes; returns how many commands came.
fn peer(answers: Vec<Vec<u8>>) -> (Vtpm, JoinHandle<usize>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let thread = thread::spawn(move || {
        let mut commands = 0;
        let mut buffer = [0; 4096];
        for answer in answers {
            match theirs.read(&mut buffer) {
                Ok(count) if count > 0 => commands += 1,
                _ => break,
            }
            if theirs.write_all(&answer).is_err() {
                break;
            }
        }
        commands
    });
    (Vtpm::new(ours), thread)
}

fn extend(vtpm: &mut Vtpm) -> Result<(), Error> {
    vtpm.extend(crate::pcr(1), &[0; 20], &[0; 32])
}

#[test]
fn accept_after_retries() {
    let answers = [RETRY, TESTING, RETRY, GOOD].map(<[u8]>::to_vec).to_vec();
    let (mut vtpm, thread) = peer(answers);
    extend(&mut vtpm).unwrap();
    assert_eq!(thread.join().unwrap(), 4);
}

#[test]
fn refuse_to_retry_for_ever() {
    let (mut vtpm, thread) = peer(vec![RETRY.to_vec(); 1000]);
    let error = extend(&mut vtpm).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    drop(vtpm);
    assert_eq!(thread.join().unwrap(), 12);
}

#[test]
fn accept_an_answer_in_pieces() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut vtpm = Vtpm::new(ours);
    let thread = thread::spawn(move || {
        let mut buffer = [0; 4096];
        let _ = theirs.read(&mut buffer).unwrap();
        for byte in GOOD {
            theirs.write_all(&[*byte]).unwrap();
        }
        theirs
    });
    extend(&mut vtpm).unwrap();
    thread.join().unwrap();
}

#[test]
fn refuse_malformed_answers_and_send_nothing_more() {
    let longer = [GOOD, &[0]].concat();
    let mut long_header = GOOD.to_vec();
    long_header[3..5].copy_from_slice(&[0xFF, 0xFF]);
    let mut short_header = GOOD.to_vec();
    short_header[5] = 9;
    let mut unlike = GOOD.to_vec();
    unlike[1] = 1;
    let twice = [GOOD, GOOD].concat();
    for answer in [longer, long_header, short_header, unlike, twice] {
        let (mut vtpm, thread) = peer(vec![answer.clone(), GOOD.to_vec()]);
        let error = extend(&mut vtpm).unwrap_err();
        assert!(
            matches!(error, Error::Malformed { .. }),
            "{answer:x?}: {error}"
        );
        assert!(
            matches!(extend(&mut vtpm), Err(Error::Broken { .. })),
            "{answer:x?}"
        );
        drop(vtpm);
        assert_eq!(thread.join().unwrap(), 1);
    }
}

#[test]
fn refuse_an_answer_that_is_cut_off() {
    for end in 0..GOOD.len() {
        let (mut vtpm, thread) = peer(vec![GOOD[..end].to_vec()]);
        assert!(
            matches!(extend(&mut vtpm), Err(Error::Closed { .. })),
            "{end}"
        );
        thread.join().unwrap();
    }
}

#[test]
fn refuse_a_public_area_under_another_name() {
    // TPM2_CreatePrimary: handle, empty public area, creation data, hash, ticket, and a name that is
    // not the hash of nothing.
    let mut parameters = vec![0, 0, 0, 0, 0, 0];
    parameters.extend([0x80, 0x21, 0x40, 0, 0, 0x0B, 0, 0]);
    parameters.extend([0, 34, 0, 0x0B]);
    parameters.extend([7; 32]);
    let mut answer = vec![0x80, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0];
    answer.extend((parameters.len() as u32).to_be_bytes());
    answer.extend(parameters);
    answer.extend([0, 0, 1, 0, 0]);
    answer[5] = answer.len() as u8;
    let (mut vtpm, thread) = peer(vec![answer]);
    let text = vtpm.create_ek().unwrap_err().to_string();
    assert!(
        text.ends_with("the key's name is not that of its public area"),
        "{text}"
    );
    thread.join().unwrap();
}
