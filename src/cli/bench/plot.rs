//! Lines over two axes, as SVG.

use plotters::prelude::*;

const SIZE: (u32, u32) = (960, 540);
const COLORS: [RGBColor; 6] = [
    RGBColor(43, 108, 176),
    RGBColor(221, 107, 32),
    RGBColor(197, 48, 48),
    RGBColor(47, 133, 90),
    RGBColor(107, 70, 193),
    RGBColor(74, 85, 104),
];

/// What stands at an axis, and whether it is logarithmic.
#[derive(Debug, Clone, Copy)]
pub struct Axis<'a> {
    pub label: &'a str,
    pub logarithmic: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub name: String,
    /// Those that a logarithmic axis cannot show are left out.
    pub points: Vec<(f64, f64)>,
}

#[derive(Debug, Clone, Copy)]
pub struct Chart<'a> {
    pub title: &'a str,
    pub x: Axis<'a>,
    pub y: Axis<'a>,
    pub lines: &'a [Line],
}

impl Axis<'_> {
    /// Where a value is drawn.
    fn place(&self, value: f64) -> f64 {
        if self.logarithmic { value.log10() } else { value }
    }

    fn name(&self, place: f64) -> String {
        let value = if self.logarithmic { 10f64.powf(place) } else { place };
        match value.abs() {
            million if million >= 1e6 => format!("{}M", rounded(value / 1e6)),
            thousand if thousand >= 1e4 => format!("{}k", rounded(value / 1e3)),
            _ => rounded(value),
        }
    }

    /// From the least value to the greatest; a linear axis begins at 0.
    fn range(&self, values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values {
            (low, high) = (low.min(value), high.max(value));
        }
        match (low.is_finite(), self.logarithmic) {
            (false, _) => 0.0..1.0,
            (true, true) => (low - 0.1)..(high + 0.1),
            (true, false) => low.min(0.0)..(high * 1.05).max(low + 1e-9),
        }
    }
}

/// Three digits.
fn rounded(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}").trim_end_matches(".0").to_owned(),
        v if v >= 1.0 => {
            format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        _ => format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}

impl Chart<'_> {
    pub fn svg(&self) -> Result<String, String> {
        let mut svg = String::new();
        self.draw(&mut svg).map_err(|error| format!("the plot: {error}"))?;
        Ok(svg)
    }

    fn draw(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let placed: Vec<Vec<(f64, f64)>> = self
            .lines
            .iter()
            .map(|line| {
                let points = line.points.iter().map(|&(x, y)| (self.x.place(x), self.y.place(y)));
                points.filter(|(x, y)| x.is_finite() && y.is_finite()).collect()
            })
            .collect();
        let all = || placed.iter().flatten();
        let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(
                self.x.range(all().map(|point| point.0)),
                self.y.range(all().map(|point| point.1)),
            )?;
        chart
            .configure_mesh()
            .x_desc(self.x.label)
            .y_desc(self.y.label)
            .x_label_formatter(&|place| self.x.name(*place))
            .y_label_formatter(&|place| self.y.name(*place))
            .draw()?;
        for ((line, points), color) in self.lines.iter().zip(&placed).zip(COLORS.iter().cycle()) {
            let style = color.stroke_width(2);
            chart
                .draw_series(LineSeries::new(points.iter().copied(), style).point_size(3))?
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .position(SeriesLabelPosition::UpperLeft)
            .draw()?;
        area.present()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let axis = Axis { label: "", logarithmic: false };
        let names = [0.0, 0.25, 1.0, 12.5, 250.0, 9_000.0, 25_000.0, 1_250_000.0];
        let names = names.map(|value| axis.name(value));
        assert_eq!(names, ["0", "0.25", "1", "12.5", "250", "9000", "25k", "1.25M"]);
        assert_eq!(Axis { label: "", logarithmic: true }.name(-1.0), "0.1");
    }

    #[test]
    fn what_is_drawn_is_there() {
        let line =
            Line { name: "p99".to_owned(), points: vec![(0.0, 1.0), (10.0, 0.0), (20.0, 5.0)] };
        let axis = |label, logarithmic| Axis { label, logarithmic };
        let (x, y) = (axis("calls/s", false), axis("ms", true));
        let svg = Chart { title: "a < b", x, y, lines: &[line] }.svg().unwrap();
        for text in ["<svg", "p99", "calls/s", "ms", "a &lt; b"] {
            assert!(svg.contains(text), "{text} in {svg}");
        }
        // The zero has no place on a logarithmic axis.
        assert_eq!(svg.matches("<circle").count(), 2, "{svg}");
        let nothing = Chart { title: "", x, y, lines: &[] }.svg().unwrap();
        assert!(nothing.contains("<svg"));
    }
}
