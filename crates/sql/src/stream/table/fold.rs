//! Folding prepared rows into the states of their groups.

use highwater_event::{Offset, planted, time};
use highwater_log::fold::{Folded, States};
use highwater_log::keyed::{Mark, StoreError};

use super::{CLOSED, MAX_KEY, OPEN, Prepared, Ready, TableProgram};
use crate::dialect::WindowKind;
use crate::stream::aggregate::RowPlace;
use crate::stream::state::{GroupState, Partial, Session, Value, pane_prefix};

/// Why a row was not folded.
enum Refusal {
    Late(String),
    Dead(&'static str, String),
}

impl TableProgram {
    pub(super) fn fold_rows(
        &self,
        prepared: Prepared,
        mark: &mut Mark,
        states: &mut dyn States<GroupState>,
    ) -> Result<Folded<()>, StoreError> {
        let Prepared { source, ready, dead } = prepared;
        let mut folded = Folded { dead, ..Folded::default() };
        if let Some(ready) = ready {
            let mut key = Vec::new();
            for row in 0..ready.offsets.len() {
                let offset = ready.offsets.value(row) as Offset;
                match self.fold_row(&ready, row, mark, states, &mut key)? {
                    Ok(()) => folded.folded += 1,
                    Err(Refusal::Late(detail)) => folded.late.push(source.refuse(offset, "late", detail)),
                    Err(Refusal::Dead(code, detail)) => folded.dead.push(source.refuse(offset, code, detail)),
                }
            }
        }
        folded.filtered =
            source.taken() - folded.folded - folded.late.len() as u64 - folded.dead.len() as u64;
        Ok(folded)
    }

    fn fold_row(
        &self,
        ready: &Ready,
        row: usize,
        mark: &mut Mark,
        states: &mut dyn States<GroupState>,
        key: &mut Vec<u8>,
    ) -> Result<Result<(), Refusal>, StoreError> {
        let place = RowPlace {
            recorded_at: ready.recorded_at.value(row),
            offset: ready.offsets.value(row) as Offset,
        };
        let time = ready.event_times.value(row);
        let group = ready.keys.row(row);
        key.clear();
        if let Some(window) = self.window {
            let (prefix, ends) = match window.kind {
                WindowKind::Hopping { advance, .. } => {
                    let pane = time.div_euclid(advance).saturating_mul(advance);
                    key.extend_from_slice(&pane_prefix(pane));
                    (8, pane.saturating_add(advance))
                }
                WindowKind::Session { gap } => {
                    key.push(OPEN);
                    (9, time.saturating_add(gap))
                }
            };
            if ends.saturating_add(window.grace) <= mark.event_time_high {
                return Ok(Err(Refusal::Late(format!(
                    "event time {} is older than {} by more than the grace period",
                    time::show_micros(time),
                    time::show_micros(mark.event_time_high)
                ))));
            }
            if !planted::bug("lateness_per_batch") || row + 1 == ready.offsets.len() {
                mark.event_time_high = mark.event_time_high.max(time);
            }
            if group.as_ref().len() + prefix > MAX_KEY {
                return Ok(Err(too_long()));
            }
        }
        key.extend_from_slice(group.as_ref());
        if key.len() > MAX_KEY {
            return Ok(Err(too_long()));
        }
        let outcome = match self.window.map(|window| (window.kind, window.grace)) {
            Some((WindowKind::Session { gap }, grace)) => {
                self.fold_session(ready, row, place, time, (gap, grace, mark.event_time_high), key, states)?
            }
            _ => self.fold_into(states.state(key, &|| self.empty())?, ready, row, place),
        };
        Ok(outcome.ok_or_else(|| {
            Refusal::Dead(
                "overflow",
                "an exact sum or a collection of its group would not fit any more".into(),
            )
        }))
    }

    /// Takes a row into a state; `None` when it does not fit, and then nothing has changed.
    fn fold_into(&self, state: &mut GroupState, ready: &Ready, row: usize, place: RowPlace) -> Option<()> {
        let mut pairs = self.aggregates.iter().zip(&state.partials);
        if !pairs.all(|(aggregate, partial)| aggregate.fits(partial, &ready.columns, row)) {
            return None;
        }
        for (aggregate, partial) in self.aggregates.iter().zip(&mut state.partials) {
            aggregate.fold(partial, &ready.columns, row, place);
        }
        state.last_updated_at = state.last_updated_at.max(place.recorded_at);
        Some(())
    }

    /// Takes a row into the session that it touches; sessions that it bridges become one.
    #[allow(clippy::too_many_arguments, reason = "what a row is, and what decides where it goes")]
    fn fold_session(
        &self,
        ready: &Ready,
        row: usize,
        place: RowPlace,
        time: i64,
        (gap, grace, high): (i64, i64, i64),
        key: &[u8],
        states: &mut dyn States<GroupState>,
    ) -> Result<Option<()>, StoreError> {
        let none = || GroupState { partials: vec![Partial::Sessions(Vec::new())], last_updated_at: i64::MIN };
        let open = states.state(key, &none)?;
        let Some(Partial::Sessions(sessions)) = open.partials.first_mut() else {
            return Err(StoreError::Damaged(format!("the sessions of a group of {}", self.table)));
        };
        let touches = |session: &Session| {
            time >= session.start.saturating_sub(gap) && time <= session.last.saturating_add(gap)
        };
        let first = sessions.partition_point(|session| session.last.saturating_add(gap) < time);
        let touched = sessions[first..].iter().take_while(|session| touches(session)).count();
        let mut session = match touched {
            0 => Session { start: time, last: time, state: self.empty() },
            _ => sessions[first].clone(),
        };
        for other in &sessions[first + touched.min(1)..first + touched] {
            if self.combine(&mut session.state, &other.state).is_none() {
                return Ok(None);
            }
            session.last = session.last.max(other.last);
        }
        if self.fold_into(&mut session.state, ready, row, place).is_none() {
            return Ok(None);
        }
        session.start = session.start.min(time);
        session.last = session.last.max(time);
        sessions.splice(first..first + touched, [session]);

        // A row that is not late can reach back one gap; what lies further back is over.
        let over = |session: &Session| session.last.saturating_add(2 * gap).saturating_add(grace) <= high;
        let closed: Vec<Session> = sessions.extract_if(.., |session| over(session)).collect();
        open.last_updated_at = place.recorded_at;
        for session in closed {
            let mut closed_key = vec![CLOSED];
            closed_key.extend_from_slice(&pane_prefix(session.last.saturating_add(gap)));
            closed_key.extend_from_slice(&key[1..]);
            let mut state = session.state;
            state.partials.push(Partial::Extreme(Value::Int(session.start)));
            *states.state(&closed_key, &|| state.clone())? = state.clone();
        }
        Ok(Some(()))
    }
}

fn too_long() -> Refusal {
    Refusal::Dead("key_too_long", format!("a group's key may take {MAX_KEY} bytes"))
}
