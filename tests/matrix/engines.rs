//! The kinds of signatures where it counts: each engine starts what the right signer has signed, in each
//! format, and not what another one has signed.

use super::{About, Case, Cell, FORMATS, SIGNERS, Signer, Stage, expected, staged};
use crate::{
    engines::{buildah, containerd, cri, docker},
    host::POLICY,
    runtime::{Backend, Runtime},
    world::World,
};
use anyhow::{Context, Result, ensure};
use std::fs;

pub fn each_engine_asks_for_every_kind(world: &World) -> Result<()> {
    let rt = Runtime::attestrun(&world.program("attestrun")?, Backend::Libcontainer);
    let mut pod = cri::Pod::make(world, &rt)?;
    let done = staged(world, |stage| {
        let mut wrong = Vec::new();
        for format in FORMATS {
            for signer in SIGNERS {
                let refusal = match signer {
                    Signer::Key => Case::WrongKey,
                    Signer::Keyless => Case::WrongIdentity,
                };
                for case in [Case::Ok, refusal] {
                    let cell = Cell {
                        format,
                        signer,
                        about: About::Manifest,
                        case,
                    };
                    wrong.extend(on_each_engine(stage, &rt, &mut pod, cell)?);
                }
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    });
    pod.end()?;
    done
}

/// What podman, ctr, Docker, the CRI and buildah do with the demo image that is not as it should be.
fn on_each_engine(
    stage: &Stage<'_>,
    rt: &Runtime,
    pod: &mut cri::Pod<'_>,
    cell: Cell,
) -> Result<Vec<String>> {
    let world = stage.world;
    stage.set(cell)?;
    let text = stage.policy(cell.signer)?;
    let text = crate::launch::with_names(&text, &crate::engines::HOST_NETWORK)?;
    fs::write(POLICY, &text)?;
    let name = world.images()?.demo.name.as_str();
    world.note("e2e-kinds");
    let program = ["--rm", name, "/bin/true"];
    let podman = world.podman_run(rt, "run")?.args(program).output()?;
    let docker = docker::run(world, rt)?.args(program).output()?;
    let ctr = containerd::run(world, rt, "e2e-kinds", &[])?;
    let ctr = ctr.arg("/bin/true").output()?;
    let mut wrong = Vec::new();
    let words = expected(cell.format, cell.signer, cell.case).context("a cell")?;
    let mut heard = |engine: &str, started: bool, said: String| {
        let right = match cell.case {
            Case::Ok => started,
            _ => !started && said.contains("refused: ") && said.contains(words),
        };
        if !right {
            wrong.push(format!("{engine}, {cell:?}: {said}"));
        }
    };
    for (engine, output) in [("podman", podman), ("docker", docker), ("ctr", ctr)] {
        heard(engine, output.code() == 0, output.to_string());
    }
    let started = pod.start(name)?;
    heard("cri", started.is_ok(), started.err().unwrap_or_default());
    // A step of a build is nobody's image: no signature of its base lets it run, and no other forbids it.
    let (without, under) = buildah::steps(world, rt, &text)?;
    ensure!(
        without.code() != 0 && under.code() == 0,
        "buildah, {cell:?}: {without} {under}"
    );
    without.says("no [[build]] entry is for this build")?;
    Ok(wrong)
}
