//! Tables, plots and the machine they are of.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use quorate::cli::bench::plot::{Axis, Chart, Line};

use crate::growth::Point;
use crate::speed::{Measure, median};
use crate::{Figures, Results, memory, said};

/// From one count to the other, ten times as many each time.
pub fn decades(first: u64, last: u64) -> Vec<u64> {
    std::iter::successors(Some(first), |count| count.checked_mul(10))
        .take_while(|count| *count <= last)
        .collect()
}

/// Processor, cores, memory and kernel.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("unknown processor", |(_, model)| model.trim());
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let kib = memory::kib(memory::MACHINE, "MemTotal");
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{model}, {cores} cores, {} GiB, Linux {}", kib >> 20, kernel.trim())
}

/// What else runs: figures of a busy machine are worth less.
pub fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace().next().unwrap_or("unknown").to_owned()
}

pub fn version(binary: &Path) -> Result<String, String> {
    let output = Command::new(binary).arg("--version").output();
    let output = output.map_err(|error| format!("{}: {error}", binary.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

/// Processor time of the load generator and of all nodes. The former does the same for each call, and tells how fast the
/// machine was.
const CPU: &str = "us a call, client + nodes";

fn both(client_us: f64, nodes_us: f64) -> String {
    format!("{} + {}", number(client_us), number(nodes_us))
}

fn number(value: f64) -> String {
    match value {
        v if v >= 1_000.0 => {
            let whole = format!("{v:.0}");
            let mut text = String::new();
            for (place, digit) in whole.chars().enumerate() {
                if place > 0 && (whole.len() - place).is_multiple_of(3) {
                    text.push(' ');
                }
                text.push(digit);
            }
            text
        }
        v if v >= 100.0 || v == 0.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn table(text: &mut String, head: &[&str], rows: &[Vec<String>]) {
    let _ = writeln!(text, "| {} |", head.join(" | "));
    let _ = writeln!(text, "|{}|", vec!["---"; head.len()].join("|"));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text.push('\n');
}

pub fn markdown(results: &Results) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}. {}.", results.machine, results.versions.join("; "));
    let _ = writeln!(
        text,
        "Three nodes of each on loopback, defaults, data on one disk, memory that no program needs in use as a cache of files; \
         load of the machine before: {}.\n",
        results.load_before
    );
    if !results.rows.is_empty() {
        speed(&mut text, results);
    }
    if let Some((ours, etcd)) = &results.gaps {
        let _ = writeln!(
            text,
            "kill -9 of the leader under load, {} times each: the gap in acknowledged writes, in ms.\n",
            ours.ms.len()
        );
        let row = |name: &str, gaps: &crate::failover::Gaps| {
            let quantiles = [0.0, 0.5, 0.9, 1.0].map(|share| number(gaps.quantile(share)));
            std::iter::once(name.to_owned()).chain(quantiles).collect::<Vec<_>>()
        };
        table(
            &mut text,
            &["", "least", "p50", "p90", "most"],
            &[row("Quorate", ours), row("etcd", etcd)],
        );
    }
    if !results.sizes.is_empty() {
        let _ = writeln!(
            text,
            "Memory and restart; an instance has three pairs of metadata, a key of etcd 150 bytes.\n"
        );
        let rows: Vec<Vec<String>> = results
            .sizes
            .iter()
            .map(|(ours, etcd)| {
                let each = |size: &crate::growth::Size| {
                    [number(size.rss_mb), number(size.bytes_per_key), number(size.restart_seconds)]
                };
                let count = std::iter::once(number(ours.keys as f64));
                count.chain(each(ours)).chain(each(etcd)).collect()
            })
            .collect();
        let head =
            ["instances", "MB", "bytes each", "restart s", "etcd MB", "bytes each", "restart s"];
        table(&mut text, &head, &rows);
    }
    growth(&mut text, "keys", &results.keys);
    growth(&mut text, "idle connections", &results.connections);
    if !results.watches.is_empty() {
        let _ = writeln!(text, "Writes a second beside idle watches.\n");
        let rows: Vec<Vec<String>> = results
            .watches
            .iter()
            .map(|point| {
                let stream = point.stream.as_ref().map_or(f64::NAN, |stream| stream.per_second);
                [point.count as f64, point.put.per_second, stream].map(number).into()
            })
            .collect();
        table(&mut text, &["idle watches", "unary, 64 clients", "6 streams x 256"], &rows);
    }
    text
}

fn speed(text: &mut String, results: &Results) {
    let _ = writeln!(
        text,
        "Median of {} rounds in turn (least to greatest ratio); durability of ours: {}; etcd syncs as it always does.\n",
        results.rows[0].ours.len(),
        results.durability
    );
    let rows: Vec<Vec<String>> = results
        .rows
        .iter()
        .map(|row| {
            let ratios = row.ratios();
            let spread = match (ratios.first(), ratios.last()) {
                (Some(least), Some(greatest)) => {
                    format!("{}x ({}-{})", number(row.ratio()), number(*least), number(*greatest))
                }
                _ => String::new(),
            };
            let unit = match row.measure {
                Measure::Rate => "/s",
                Measure::P99 | Measure::P50 => " ms",
            };
            let value = |figures: &[_]| {
                format!("{}{unit}", number(median(figures, |it| row.measure.of(it))))
            };
            let met = match (row.reaches(row.goal), row.reaches(row.floor)) {
                (true, _) => "goal",
                (false, true) => "floor",
                (false, false) => "**missed**",
            };
            let p99 = |figures: &[_]| number(median(figures, |it: &crate::Figures| it.p99_ms));
            let cpu = |figures: &[_]| {
                let client = median(figures, |it: &crate::Figures| it.client_us);
                let servers = median(figures, |it: &crate::Figures| it.servers_us);
                both(client, servers)
            };
            vec![
                row.what.to_owned(),
                value(&row.ours),
                value(&row.etcd),
                spread,
                match row.measure {
                    Measure::Rate | Measure::P99 => format!("{} / {}", row.floor, row.goal),
                    Measure::P50 => format!("{} / {} ms", row.floor, row.goal),
                },
                met.to_owned(),
                format!("{} / {}", p99(&row.ours), p99(&row.etcd)),
                format!("{} / {}", cpu(&row.ours), cpu(&row.etcd)),
            ]
        })
        .collect();
    let head =
        ["what", "Quorate", "etcd", "ratio", "floor / goal", "reached", "p99 ms, ours / etcd", CPU];
    table(text, &head, &rows);
    let list =
        |values: &[f64]| values.iter().map(|value| number(*value)).collect::<Vec<_>>().join(", ");
    if let Some(keep_alive) = &results.keep_alive {
        let _ = writeln!(
            text,
            "10 000 sessions kept alive, each once a second, percent of a core of the busiest node: over one stream {}, by unary calls of 256 clients {}; etcd's leases, over one stream: {}. Floor 10, goal 3.\n",
            list(&keep_alive.streamed),
            list(&keep_alive.unary),
            list(&keep_alive.etcd)
        );
    }
    if !results.sagas.is_empty() {
        let rates: Vec<f64> = results.sagas.iter().map(|figures| figures.per_second).collect();
        let _ = writeln!(
            text,
            "Sagas of two steps a second, 512 clients, participant in the load generator: {}. DTM publishes 935 (MySQL) and 10 800 (Redis) on 4 cores.\n",
            list(&rates)
        );
    }
}

fn growth(text: &mut String, of: &str, points: &[(Point, Point)]) {
    if points.is_empty() {
        return;
    }
    let _ = writeln!(text, "Writes a second with more {of}.\n");
    let figures = |it: &Figures| [number(it.per_second), both(it.client_us, it.servers_us)];
    let rows: Vec<Vec<String>> = points
        .iter()
        .map(|(ours, etcd)| {
            let measured = [Some(&ours.put), ours.stream.as_ref(), Some(&etcd.put)];
            let measured = measured.into_iter().flatten().flat_map(figures);
            std::iter::once(number(ours.count as f64)).chain(measured).collect()
        })
        .collect();
    let stream = points.iter().find_map(|(ours, _)| ours.stream.as_ref());
    let stream = stream.map(|_| "6 streams x 256");
    let of_what = [Some("unary, 64 clients"), stream, Some("etcd, 64 clients")];
    let head = of_what.into_iter().flatten().flat_map(|what| [what, CPU]);
    let head: Vec<&str> = std::iter::once(of).chain(head).collect();
    table(text, &head, &rows);
}

fn curve(name: &str, points: impl Iterator<Item = (f64, f64)>) -> Line {
    Line { name: name.to_owned(), points: points.collect() }
}

/// Plots by the names of their files.
fn plots(results: &Results) -> Vec<(&'static str, Result<String, String>)> {
    let rate = Axis { label: "writes/s", logarithmic: true };
    let put = |point: &Point| (point.count as f64, point.put.per_second);
    let stream = |point: &Point| Some((point.count as f64, point.stream.as_ref()?.per_second));
    let mut plots = Vec::new();
    if !results.keys.is_empty() {
        let lines = [
            curve(
                "Quorate, 6 streams x 256",
                results.keys.iter().filter_map(|(ours, _)| stream(ours)),
            ),
            curve("Quorate, unary, 64 clients", results.keys.iter().map(|(ours, _)| put(ours))),
            curve("etcd, 64 clients", results.keys.iter().map(|(_, etcd)| put(etcd))),
        ];
        let x = Axis { label: "keys", logarithmic: true };
        let chart = Chart { title: "Writes with more keys", x, y: rate, lines: &lines };
        plots.push(("keys.svg", chart.svg()));
    }
    if !results.watches.is_empty() {
        let lines = [
            curve("6 streams x 256", results.watches.iter().filter_map(stream)),
            curve("unary, 64 clients", results.watches.iter().map(put)),
        ];
        let x = Axis { label: "idle watches", logarithmic: false };
        let chart = Chart { title: "Writes beside idle watches", x, y: rate, lines: &lines };
        plots.push(("watches.svg", chart.svg()));
    }
    if let Some((ours, etcd)) = &results.gaps {
        let sorted = |gaps: &crate::failover::Gaps| {
            let count = gaps.ms.len();
            let shares: Vec<f64> = (1..=count).map(|place| place as f64 / count as f64).collect();
            shares.into_iter().map(|share| (gaps.quantile(share), share)).collect::<Vec<_>>()
        };
        let lines =
            [curve("Quorate", sorted(ours).into_iter()), curve("etcd", sorted(etcd).into_iter())];
        let x = Axis { label: "ms without acknowledged writes", logarithmic: true };
        let y = Axis { label: "share of kills", logarithmic: false };
        let chart = Chart { title: "kill -9 of the leader", x, y, lines: &lines };
        plots.push(("failover.svg", chart.svg()));
    }
    plots
}

/// `comparison.md`, `comparison.json` and the plots.
pub fn write(results: &Results, out: &Path) -> Result<(), String> {
    let put = |name: &str, text: &str| {
        std::fs::write(out.join(name), text).map_err(|error| format!("{name}: {error}"))
    };
    put("comparison.md", &markdown(results))?;
    put("comparison.json", &serde_json::to_string_pretty(results).map_err(said)?)?;
    for (name, plot) in plots(results) {
        put(name, &plot?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Figures;
    use crate::speed::Row;

    #[test]
    fn numbers_read_well() {
        let read = [0.0, 0.5, 12.34, 123.4, 1_234.0, 1_234_567.0].map(number);
        assert_eq!(read, ["0", "0.50", "12.3", "123", "1 234", "1 234 567"]);
        assert_eq!(decades(10_000, 1_000_000), [10_000, 100_000, 1_000_000]);
    }

    #[test]
    fn a_ratio_is_the_middle_of_its_rounds() {
        let rounds =
            |rates: [f64; 3]| rates.map(|per_second| Figures { per_second, ..Figures::default() });
        let row = Row {
            what: "put",
            measure: Measure::Rate,
            ours: rounds([30.0, 50.0, 40.0]).into(),
            etcd: rounds([10.0, 10.0, 10.0]).into(),
            floor: 3.5,
            goal: 5.0,
        };
        assert_eq!((row.ratio(), row.reaches(3.5), row.reaches(5.0)), (4.0, true, false));
        let results = Results { rows: vec![row], ..Results::default() };
        let text = markdown(&results);
        assert!(
            text.contains("| put | 40.0/s | 10.0/s | 4.00x (3.00-5.00) | 3.5 / 5 | floor |"),
            "{text}"
        );
    }
}
