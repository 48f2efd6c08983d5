//! Carries out the schedule of faults and writes it into the history.

use std::io;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep, sleep_until};

use super::recorder::Recorder;
use crate::cluster::links::Rules;
use crate::cluster::{Cluster, Defect};
use crate::edn::Value;
use crate::nemesis::{Active, Plan, Scene};
use crate::random::Random;

/// Time between faults that hold together: who is cut off has tried to send something before it is stopped, or
/// tries after that.
const APART: Duration = Duration::from_millis(500);
/// How often it is looked whether all processes are there.
const LOOK: Duration = Duration::from_millis(200);

/// Does it all, one step after the other.
pub async fn carry_out(
    plan: &Plan,
    cluster: &mut Cluster,
    recorder: &Recorder,
    random: &mut Random,
) -> io::Result<()> {
    let mut number = 0;
    for step in &plan.steps {
        rest(cluster, recorder, step.rest).await?;
        let mut active: Vec<(i64, &'static str, Box<dyn Active>)> = Vec::new();
        for (nth, fault) in step.faults.iter().enumerate() {
            if nth > 0 {
                rest(cluster, recorder, APART).await?;
            }
            number += 1;
            let name = fault.kind().name();
            recorder.nemesis(name, entries([("beginning", Value::Int(number))]));
            let mut scene = Scene { cluster, random: random.fork() };
            let Some(begun) = fault.begin(&mut scene).await? else {
                let what = Value::String(fault.describe());
                recorder.nemesis(name, entries([("skipped", Value::Int(number)), ("what", what)]));
                continue;
            };
            let majority = begun.leaves_majority && step.faults.len() == 1;
            let told = [
                ("begin", Value::Int(number)),
                ("what", begun.what),
                ("majority", Value::Bool(majority)),
            ];
            recorder.nemesis(name, entries(told));
            active.push((number, name, begun.active));
        }
        rest(cluster, recorder, step.lasts).await?;
        while let Some((number, name, fault)) = active.pop() {
            let mut scene = Scene { cluster, random: random.fork() };
            let (key, text) = match fault.end(&mut scene).await? {
                Ok(proof) => ("proof", proof),
                Err(missing) => ("missing", missing),
            };
            let told = [("end", Value::Int(number)), (key, Value::String(text))];
            recorder.nemesis(name, entries(told));
            if !active.is_empty() {
                rest(cluster, recorder, APART).await?;
            }
        }
    }
    Ok(())
}

/// Waits, and looks after the processes meanwhile.
pub async fn rest(cluster: &mut Cluster, recorder: &Recorder, time: Duration) -> io::Result<()> {
    let until = Instant::now() + time;
    while Instant::now() < until {
        sleep_until(until.min(Instant::now() + LOOK)).await;
        look(cluster, recorder)?;
    }
    Ok(())
}

fn look(cluster: &mut Cluster, recorder: &Recorder) -> io::Result<()> {
    cluster.look_after()?;
    for Defect { f, node, status } in cluster.take_defects() {
        let told = [("node", Value::Int(node as i64)), ("status", Value::String(status))];
        recorder.nemesis(f, entries(told));
    }
    Ok(())
}

/// Nothing is wrong with any link or process any more.
pub async fn heal(cluster: &mut Cluster, recorder: &Recorder) -> io::Result<()> {
    look(cluster, recorder)?;
    cluster.links().change(Rules::clear);
    for id in cluster.ids() {
        if cluster.node(id).state() == Some('T') {
            cluster.signal(id, Signal::CONT)?;
        }
        cluster.spawn(id)?;
    }
    recorder.nemesis("heal", Value::Nil);
    sleep(LOOK).await;
    Ok(())
}

pub fn entries<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Value::Map(entries.into_iter().map(|(key, value)| (Value::keyword(key), value)).collect())
}
