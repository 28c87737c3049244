//! The full product: every cell of the matrix on each engine, with its outcome in the engine's own words.

use super::{Case, Cell, Format, Signer, Stage, at_create, cells, staged};
use crate::{
    engines::{buildah, containerd, cri, docker},
    host::POLICY,
    runtime::{Backend, Runtime},
    spawn::{Output, Running},
    world::World,
};
use anyhow::{Result, ensure};
use std::{fs, time::Duration};

/// Podman, Docker, ctr, the CRI and buildah on all cells of this format and signer.
pub fn each_engine(world: &World, format: Format, signer: Signer) -> Result<()> {
    let rt = Runtime::attestrun(&world.program("attestrun")?, Backend::Libcontainer);
    let mut pod = cri::Pod::make(world, &rt)?;
    let done = staged(world, |stage| {
        buildah::working(world, &rt, |build| {
            let mut engines = Engines {
                stage,
                rt: &rt,
                pod: &mut pod,
                build,
            };
            let mut wrong = Vec::new();
            let ours = |cell: &Cell| (cell.format, cell.signer) == (format, signer);
            for cell in cells().into_iter().filter(ours) {
                wrong.extend(engines.misjudge(cell)?);
            }
            ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
            Ok(())
        })
    });
    pod.end()?;
    done
}

/// The engines, and what there is of them for all cells: a pod, a build's working container.
struct Engines<'a, 's, 'p> {
    stage: &'a Stage<'s>,
    rt: &'a Runtime,
    pod: &'a mut cri::Pod<'p>,
    build: &'a str,
}

impl Engines<'_, '_, '_> {
    /// What the engines, all at once, do with the demo image that is not as it should be.
    fn misjudge(&mut self, cell: Cell) -> Result<Vec<String>> {
        let policy = self.prepare(cell)?;
        let started = self.start()?;
        let in_pod = self.pod.start(&self.stage.world.images()?.demo.name)?;
        let step = buildah::step(self.stage.world, self.rt, self.build)?.output()?;
        let mut wrong = Vec::new();
        for running in started {
            let output = running.finish(Duration::from_secs(60))?;
            wrong.extend(heard(cell, output.code() == 0, &output.to_string()));
        }
        let said = in_pod.as_ref().err().map_or("", String::as_str);
        wrong.extend(heard(cell, in_pod.is_ok(), &format!("the CRI: {said}")));
        wrong.extend(self.misbuild(cell, &policy, &step)?);
        Ok(wrong)
    }

    /// Store and policy of this cell; the policy's text.
    fn prepare(&self, cell: Cell) -> Result<String> {
        self.stage.set(cell)?;
        let text = self.stage.policy(cell.signer)?;
        let text = crate::launch::with_names(&text, &crate::engines::HOST_NETWORK)?;
        fs::write(POLICY, &text)?;
        Ok(text)
    }

    /// Those that have a client to wait for.
    fn start(&self) -> Result<[Running; 3]> {
        let world = self.stage.world;
        world.note("e2e-kinds");
        let program = ["--rm", &world.images()?.demo.name, "/bin/true"];
        let podman = world.podman_run(self.rt, "run")?.args(program);
        let docker = docker::run(world, self.rt)?.args(program);
        let ctr = containerd::run(world, self.rt, "e2e-kinds", &[])?.arg("/bin/true");
        Ok([podman.start()?, docker.start()?, ctr.start()?])
    }

    /// A step of a build is nobody's image: no signature of its base lets it run, and with an entry for
    /// builds none forbids it.
    fn misbuild(&self, cell: Cell, policy: &str, without: &Output) -> Result<Option<String>> {
        fs::write(POLICY, format!("{policy}\n{}", buildah::ENTRY))?;
        let under = buildah::step(self.stage.world, self.rt, self.build)?.output()?;
        let words = [
            "refused: a build on ",
            "no [[build]] entry is for this build",
        ];
        let refused = without.code() != 0 && words.iter().all(|w| without.stderr.contains(w));
        let right = refused && under.code() == 0;
        Ok((!right).then(|| format!("{cell:?}: {without}\n{under}")))
    }
}

/// What an engine said, where that or the outcome is wrong.
fn heard(cell: Cell, started: bool, said: &str) -> Option<String> {
    let right = match cell.case {
        Case::Ok => started,
        _ => !started && said.contains("refused: ") && said.contains(at_create(cell)),
    };
    (!right).then(|| format!("{cell:?}: {said}"))
}
