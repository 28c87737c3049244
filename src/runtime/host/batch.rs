//! One host quote for all challenges that came while the TPM was busy: no timer, no delay of its own. Who
//! gets the turn takes along all that wait; who finds its answer there when its turn comes has no work left.

use super::core::{Core, HostHalf};
use anyhow::{Context, Result, anyhow};
use std::{
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
};
use verify::batch::{Batch, MAX_LEAVES, Path};

/// The quote, and a leaf's path to its root; why there is none is told to all that waited.
type Answer = Result<(Arc<HostHalf>, Path), String>;

#[derive(Default)]
pub struct Batches {
    waiting: Mutex<Vec<(Leaf, SyncSender<Answer>)>>,
    turn: Mutex<()>,
}

type Leaf = [u8; 32];

impl Batches {
    /// A quote that covers `leaf`, among others.
    pub fn quote(&self, core: &Core, leaf: Leaf) -> Result<(Arc<HostHalf>, Path)> {
        let (told, answer) = sync_channel(1);
        self.waiting().push((leaf, told));
        // A thread that panicked had nobody's answer but its batch's, who then hear that it is gone.
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = match answer.try_recv() {
            Ok(answer) => answer,
            Err(_) => {
                self.serve(core);
                answer.try_recv().context("the batch was lost")?
            }
        };
        drop(turn);
        answer.map_err(|why| anyhow!(why))
    }

    /// Quotes once for all that wait now.
    fn serve(&self, core: &Core) {
        let mut batch = mem::take(&mut *self.waiting());
        // More than fit wait for the next turn; the one whose turn it is came early enough.
        let later = batch.split_off(batch.len().min(MAX_LEAVES));
        self.waiting().extend(later);
        let leaves = batch.iter().map(|(leaf, _)| *leaf).collect();
        let quoted = Batch::of(leaves)
            .context("nobody waits")
            .and_then(|tree| Ok((Arc::new(core.quote(&tree.root())?), tree)))
            .map_err(|e| format!("{e:#}"));
        for (index, (_, told)) in batch.into_iter().enumerate() {
            let answer = match &quoted {
                Ok((half, tree)) => match tree.path(index) {
                    Some(path) => Ok((Arc::clone(half), path)),
                    None => Err("no such leaf".to_owned()),
                },
                Err(why) => Err(why.clone()),
            };
            // Who gave up waiting needs no answer.
            told.try_send(answer).ok();
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<(Leaf, SyncSender<Answer>)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
