//! From commands to lines, the same when the owner works and when its journal is read again.

use crate::billing::domain::{Applied, Batch, Command, Hashed, Micros, Outgoing, Row, State};
use crate::billing::journal::{Line, LineKind};

/// [`State::apply`], with what became of it appended to `lines`. `seq` is the batch that the command goes into, and `place`
/// its place among the batch's commands.
pub fn apply<'c>(
    state: &mut State,
    command: impl Into<Hashed<'c>>,
    now: Micros,
    (seq, place): (u64, usize),
    lines: &mut Vec<Line>,
) -> Applied {
    let hashed = command.into();
    let command = hashed.command;
    // What moves has no events: who goes is known before, who came is known after.
    let goes = match command {
        Command::Release { bucket, generation, .. } => {
            state.accounts_of(*bucket).map(|rows| (rows, (*bucket, *generation)))
        }
        _ => None,
    };
    let applied = state.apply(hashed, now);
    note(command, &applied, (seq, place), lines);
    if applied.changed {
        let comes = match command {
            Command::Adopt { generation, image } => Outgoing::bucket_of_image(image)
                .and_then(|bucket| Some((state.accounts_of(bucket)?, (bucket, *generation)))),
            _ => None,
        };
        let place = (seq, position(place));
        let mut note = |kind, moved: Option<(Vec<Row>, (u16, u64))>| {
            let (rows, which) = moved.unwrap_or_default();
            lines.extend(rows.into_iter().map(|row| Line::of_move(place, kind, applied.at, row, which)));
        };
        note(LineKind::Released, goes);
        note(LineKind::Adopted, comes);
    }
    applied
}

/// A batch of the journal, as the owner applied it.
pub(super) fn replay(state: &mut State, batch: &Batch, seq: u64, lines: &mut Vec<Line>) {
    let moves = |command: &Command| matches!(command, Command::Release { .. } | Command::Adopt { .. });
    if batch.commands.iter().any(moves) {
        for (place, command) in batch.commands.iter().enumerate() {
            apply(state, command, batch.at, (seq, place), lines);
        }
        return;
    }
    let mut place = 0;
    state.apply_all(&batch.commands, batch.at, |command, applied| {
        note(command, &applied, (seq, place), lines);
        place += 1;
    });
}

fn note(command: &Command, applied: &Applied, (seq, place): (u64, usize), lines: &mut Vec<Line>) {
    let key = match command {
        Command::Operate { key, .. } => Some(*key),
        _ => None,
    };
    let events = applied.events.iter().zip(position(place)..);
    lines.extend(events.map(|(event, position)| Line::of_event(seq, position, key, event)));
}

/// A command has at most two events, and a batch far fewer than 2^31 commands.
fn position(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX).saturating_mul(2)
}
