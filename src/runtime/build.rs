//! How the runtime is linked: its processes start once or more per container, so a start must be cheap.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Like the runc of distributions, at a fixed address: a thousand pages less to relocate at each start.
    println!("cargo:rustc-link-arg-bin=attestrun=-no-pie");
}
