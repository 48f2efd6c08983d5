//! `--sweep`: how latency grows with the load. A closed loop first shows what can be reached; then each rate is
//! measured without coordinated omission.

use serde::Serialize;

use super::plot::{Axis, Chart, Line};
use super::{BenchArgs, Figures, Report, Workload, measure};
use crate::cli::output::{self, Table};
use crate::cli::{Context, Error};
use crate::options::{Output, exit};

#[derive(Debug, Serialize)]
struct Sweep {
    /// As many calls as possible.
    closed_loop: Report,
    /// In the order of their rates.
    points: Vec<Report>,
}

pub async fn run(args: &BenchArgs, context: &Context) -> Result<(), Error> {
    if !args.workload.takes_rate() {
        let what = format!("--sweep: {} makes as many calls as it can", args.workload.name());
        return Err(Error::refused(exit::USAGE, what));
    }
    let points = args.sweep.unwrap_or(2);
    // What one measurement makes the next one finds, except sessions, which nobody else knows.
    let anew = matches!(args.workload, Workload::Heartbeat | Workload::StreamHeartbeat);
    let once = BenchArgs { keep: !anew, sweep: None, plot: None, ..args.clone() };
    output::note("as many calls as possible");
    let closed_loop = measure(&once, context).await?;
    let mut sweep = Sweep { closed_loop, points: Vec::new() };
    for point in 1..=points {
        let rate = sweep.closed_loop.ops_per_second * f64::from(point) / f64::from(points);
        let rate = (rate as u32).max(1);
        output::note(&format!("{point} of {points}: {rate} calls/s"));
        let keep = !anew && (args.keep || point < points);
        let at_rate = BenchArgs { rate: Some(rate), no_fill: !anew, keep, ..once.clone() };
        sweep.points.push(measure(&at_rate, context).await?);
    }
    if let Some(file) = &args.plot {
        let svg = plot(&sweep).map_err(|error| Error::refused(exit::ERROR, error))?;
        std::fs::write(file, svg).map_err(|error| Error::io(file.display(), error))?;
    }
    context.printer().answer(&sweep, || text(&sweep))
}

/// Of the calls that a workload is about: the only ones there are, or its writes.
fn figures(report: &Report) -> Option<&Figures> {
    report.calls.get(report.workload.write()).or_else(|| report.calls.values().next())
}

fn text(sweep: &Sweep) -> String {
    let mut text = super::text(&sweep.closed_loop);
    text.push('\n');
    let columns = ["asked for/s", "calls/s", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "errors"];
    let mut table = Table::new(&columns);
    for report in &sweep.points {
        let Some(figures) = figures(report) else { continue };
        let ms = |us: f64| format!("{:.3}", us / 1e3);
        table.row([
            report.rate.unwrap_or_default().to_string(),
            format!("{:.0}", report.ops_per_second),
            ms(figures.p50_us),
            ms(figures.p99_us),
            ms(figures.p999_us),
            ms(figures.max_us),
            report.errors.to_string(),
        ]);
    }
    text.push_str(&table.render(Output::Simple));
    text
}

fn plot(sweep: &Sweep) -> Result<String, String> {
    let line = |name: &str, of: fn(&Figures) -> f64| {
        let points = sweep
            .points
            .iter()
            .filter_map(|report| Some((report.ops_per_second, of(figures(report)?) / 1e3)));
        Line { name: name.to_owned(), points: points.collect() }
    };
    let lines = [
        line("p50", |figures| figures.p50_us),
        line("p99", |figures| figures.p99_us),
        line("p99.9", |figures| figures.p999_us),
    ];
    let Report { workload, size, keys, durability, .. } = &sweep.closed_loop;
    let title = format!("{}: {size} bytes, {keys} keys, {durability}", workload.name());
    let x = Axis { label: "calls/s", logarithmic: false };
    let y = Axis { label: "ms", logarithmic: true };
    Chart { title: &title, x, y, lines: &lines }.svg()
}
