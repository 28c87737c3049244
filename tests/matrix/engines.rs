//! The kinds of signatures where it counts: each engine starts what the right signer has signed, in each
//! format, and not what another one has signed; and every cell of the matrix on one engine or another.

use super::{About, Case, Cell, FORMATS, SIGNERS, Signer, Stage, at_create, cells, staged};
use crate::{
    engines::{buildah, containerd, cri, docker},
    host::POLICY,
    runtime::{Backend, Runtime},
    world::World,
};
use anyhow::{Result, ensure};
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

/// Every kind of signature, good and bad, on one engine each: in turn, so that each engine has every outcome,
/// format, signer and subject.
pub fn every_kind_on_some_engine(world: &World) -> Result<()> {
    let rt = Runtime::attestrun(&world.program("attestrun")?, Backend::Libcontainer);
    let mut pod = cri::Pod::make(world, &rt)?;
    let done = staged(world, |stage| {
        let mut wrong = Vec::new();
        for (group, cells) in cells()
            .chunk_by(|one, other| one.same_but_for_the_case(other))
            .enumerate()
        {
            for (number, &cell) in cells.iter().enumerate() {
                let engine = ENGINES[(group + number) % ENGINES.len()];
                prepared(stage, cell)?;
                wrong.extend(misjudged_by(engine, world, &rt, &mut pod, cell)?);
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    });
    pod.end()?;
    done
}

#[derive(Debug, Clone, Copy)]
enum Engine {
    Podman,
    Docker,
    Ctr,
    Cri,
}

const ENGINES: [Engine; 4] = [Engine::Podman, Engine::Docker, Engine::Ctr, Engine::Cri];

/// Store and policy of this cell; the policy's text.
fn prepared(stage: &Stage<'_>, cell: Cell) -> Result<String> {
    stage.set(cell)?;
    let text = stage.policy(cell.signer)?;
    let text = crate::launch::with_names(&text, &crate::engines::HOST_NETWORK)?;
    fs::write(POLICY, &text)?;
    Ok(text)
}

/// What the engine does with the demo image, where that is not as it should be.
fn misjudged_by(
    engine: Engine,
    world: &World,
    rt: &Runtime,
    pod: &mut cri::Pod<'_>,
    cell: Cell,
) -> Result<Option<String>> {
    let name = world.images()?.demo.name.as_str();
    world.note("e2e-kinds");
    let program = ["--rm", name, "/bin/true"];
    let output = match engine {
        Engine::Podman => world.podman_run(rt, "run")?.args(program).output()?,
        Engine::Docker => docker::run(world, rt)?.args(program).output()?,
        Engine::Ctr => {
            let run = containerd::run(world, rt, "e2e-kinds", &[])?;
            run.arg("/bin/true").output()?
        }
        Engine::Cri => {
            let started = pod.start(name)?;
            let said = started.as_ref().err().cloned().unwrap_or_default();
            return Ok(heard(engine, cell, started.is_ok(), said));
        }
    };
    let started = output.code() == 0;
    Ok(heard(engine, cell, started, output.to_string()))
}

fn heard(engine: Engine, cell: Cell, started: bool, said: String) -> Option<String> {
    let right = match cell.case {
        Case::Ok => started,
        _ => !started && said.contains("refused: ") && said.contains(at_create(cell)),
    };
    (!right).then(|| format!("{engine:?}, {cell:?}: {said}"))
}

/// What podman, Docker, ctr, the CRI and buildah do with the demo image that is not as it should be.
fn on_each_engine(
    stage: &Stage<'_>,
    rt: &Runtime,
    pod: &mut cri::Pod<'_>,
    cell: Cell,
) -> Result<Vec<String>> {
    let world = stage.world;
    let text = prepared(stage, cell)?;
    let mut wrong = Vec::new();
    for engine in ENGINES {
        wrong.extend(misjudged_by(engine, world, rt, pod, cell)?);
    }
    // A step of a build is nobody's image: no signature of its base lets it run, and no other forbids it.
    let (without, under) = buildah::steps(world, rt, &text)?;
    ensure!(
        without.code() != 0 && under.code() == 0,
        "buildah, {cell:?}: {without} {under}"
    );
    without.says("no [[build]] entry is for this build")?;
    Ok(wrong)
}
