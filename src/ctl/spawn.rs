//! Starts openssl for the tests: an implementation of the same standards by other people.

use std::process::{Command, Stdio};

/// Standard output of `openssl ARGS…`; the test fails when openssl does.
pub fn openssl(args: &[&str]) -> String {
    let (ok, stdout, stderr) = try_openssl(args);
    assert!(ok, "openssl {}: {stderr}", args.join(" "));
    stdout
}

/// Success, standard output and standard error of `openssl ARGS…`.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the crate's spawn module, and only for tests"
)]
pub fn try_openssl(args: &[&str]) -> (bool, String, String) {
    let output = Command::new("/usr/bin/openssl")
        .args(args)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .expect("these tests need /usr/bin/openssl (apt-get install openssl)");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.success(),
        text(&output.stdout),
        text(&output.stderr),
    )
}
