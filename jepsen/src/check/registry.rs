//! The registry with sessions: `:register [session instance]`, `:deregister [session instance]`, `:beat [session]`,
//! `:open`, and `:list`, answered with `[[instance healthy] ..]`.
//!
//! An instance is registered by one client in one session, and never again. It is there and healthy from the
//! acknowledgement until the session may have expired; once its deregistration was acknowledged it is in no
//! later answer; and when nobody keeps it alive it is gone after TTL, grace and a bound, unless faults were in
//! the way.

use std::collections::HashMap;

use super::counter::int;
use super::faults::Faults;
use super::leases::{Lease, Time, leases};
use super::replay::anomaly;
use crate::edn::Value;
use crate::history::{Call, Error, History, Kind, Op};
use crate::report::Report;

/// How sessions and services are set, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    pub ttl: Time,
    /// From the expiry of a session until its instances go.
    pub grace: Time,
    /// How much longer that may take.
    pub bound: Time,
}

/// The life of an instance, by its events.
#[derive(Debug, Default)]
pub(super) struct Life<'a> {
    pub session: i64,
    /// Asked for, unless it certainly did not take place.
    pub asked: Option<&'a Op>,
    /// Acknowledged.
    pub registered: Option<&'a Op>,
    /// Asked for, whatever came of it.
    pub leaving: Option<&'a Op>,
    /// Acknowledged.
    pub left: Option<&'a Op>,
}

struct Listing<'a> {
    invoked: &'a Op,
    op: &'a Op,
    shows: HashMap<&'a Value, bool>,
}

pub fn check(history: &History, terms: Terms) -> Result<Report, Error> {
    let calls = history.calls()?;
    let succeeded = calls.iter().filter(|call| history.outcome(**call) == Kind::Ok).count();
    let mut report = Report::new("registered", succeeded);
    let leases = leases(history, &calls, terms.ttl, &mut report)?;
    let lives = lives(history, &calls)?;
    let faults = Faults::new(history);
    let mut gone = 0;
    for listing in listings(history, &calls)? {
        let disturbed = faults.last_before(listing.op.index);
        for (instance, life) in &lives {
            let Some(lease) = leases.get(&life.session) else { continue };
            let shown = listing.shows.get(instance).copied();
            judge(instance, life, lease, &listing, shown, &mut report);
            outlives(instance, lease, &listing, shown, disturbed, terms, &mut report);
            gone +=
                usize::from(lingers(life, lease, &listing, shown, disturbed, terms, &mut report));
        }
        let was_asked = |instance: &Value| {
            let asked = lives.get(instance).and_then(|life| life.asked);
            asked.is_some_and(|asked| asked.index < listing.op.index)
        };
        if let Some(unknown) = listing.shows.keys().find(|instance| !was_asked(instance)) {
            let what = format!("instance {unknown} was never registered");
            report.anomalies.push(anomaly("phantom-instance", what, &[listing.op]));
        }
    }
    if gone == 0 {
        report
            .unknown
            .push("no instance was looked for after its session should be gone".to_owned());
    }
    report.settle();
    Ok(report)
}

pub(super) fn lives<'a>(
    history: &'a History,
    calls: &[Call],
) -> Result<HashMap<&'a Value, Life<'a>>, Error> {
    let mut lives: HashMap<&Value, Life<'_>> = HashMap::new();
    for call in calls {
        let invoked = &history.ops[call.invoke];
        if invoked.f != "register" && invoked.f != "deregister" {
            continue;
        }
        let life = lives.entry(super::counter::part(invoked, 1)?).or_default();
        life.session = int(invoked, 0)?;
        let done = call.complete.filter(|_| history.outcome(*call) == Kind::Ok);
        let done = done.map(|at| &history.ops[at]);
        if invoked.f == "register" {
            life.registered = done;
            life.asked = Some(invoked).filter(|_| history.outcome(*call) != Kind::Fail);
        } else {
            life.leaving.get_or_insert(invoked);
            life.left = life.left.or(done);
        }
    }
    Ok(lives)
}

fn listings<'a>(history: &'a History, calls: &[Call]) -> Result<Vec<Listing<'a>>, Error> {
    let mut listings = Vec::new();
    for call in calls {
        let invoked = &history.ops[call.invoke];
        let done = call.complete.filter(|_| history.outcome(*call) == Kind::Ok);
        let Some(at) = done.filter(|_| invoked.f == "list") else { continue };
        let op = &history.ops[at];
        let wrong = || Error::malformed(op, "a listing shows [instance healthy]");
        let mut shows = HashMap::new();
        for entry in op.value.elements().ok_or_else(wrong)? {
            let Some([instance, Value::Bool(healthy)]) = entry.elements() else {
                return Err(wrong());
            };
            shows.insert(instance, *healthy);
        }
        listings.push(Listing { invoked, op, shows });
    }
    Ok(listings)
}

/// What must be there, and what must not be there any more.
fn judge(
    instance: &Value,
    life: &Life<'_>,
    lease: &Lease,
    listing: &Listing<'_>,
    shown: Option<bool>,
    report: &mut Report,
) {
    let (from, to) = (listing.invoked, listing.op);
    if let Some(registered) = life.registered
        && registered.index < from.index
        && to.time < lease.until
        && life.leaving.is_none_or(|leaving| to.index < leaving.index)
        && shown != Some(true)
    {
        let (name, how) = match shown {
            Some(_) => ("expired-early", "not healthy"),
            None => ("lost-instance", "not there"),
        };
        let what = format!("instance {instance} is {how}, and its session lives");
        report.anomalies.push(anomaly(name, what, &[registered, to]));
    }
    if let Some(left) = life.left.filter(|left| left.index < from.index)
        && shown.is_some()
    {
        let what = format!("instance {instance} is there after its deregistration");
        report.anomalies.push(anomaly("resurrected", what, &[left, to]));
    }
}

/// A leader may say so of an expiry that it has only proposed, and when it is deposed before that is decided the next
/// one gives the session another TTL.
fn outlives(
    instance: &Value,
    lease: &Lease,
    listing: &Listing<'_>,
    shown: Option<bool>,
    disturbed: Option<Time>,
    terms: Terms,
    report: &mut Report,
) {
    let (Some(expired), Some(disturbed)) = (lease.expired, disturbed) else { return };
    let decided = if disturbed > expired { disturbed + terms.ttl } else { expired } + terms.bound;
    if shown == Some(true) && decided < listing.invoked.time {
        let what = format!("instance {instance} is healthy after its session has expired");
        report.anomalies.push(anomaly("outlives-session", what, &[listing.op]));
    }
}

/// Whether this listing could show that the instance is gone; if it is not, that is reported.
fn lingers(
    life: &Life<'_>,
    lease: &Lease,
    listing: &Listing<'_>,
    shown: Option<bool>,
    disturbed: Option<Time>,
    terms: Terms,
    report: &mut Report,
) -> bool {
    // A registration without an answer ends with its session all the same.
    let (Some(born), Some(disturbed)) = (life.registered.or(life.asked), disturbed) else {
        return false;
    };
    // A new leader restarts every TTL, so the last fault counts as a keep-alive.
    let rests_since = lease.last_try.max(disturbed).max(born.time);
    let due = rests_since + terms.ttl + terms.grace + terms.bound;
    if listing.invoked.time < due {
        return false;
    }
    if shown.is_some() {
        let what =
            format!("session {} was left alone and its instance is still there", life.session);
        report.anomalies.push(anomaly("lingers", what, &[born, listing.op]));
    }
    true
}
