//! How a service is balanced, as the registry stores it and as a URI gives it: a name and parameters. The
//! client balances by it, the API refuses what no client would understand. The policies themselves are in
//! [`crate::client::balance`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use crate::error::Error;
use crate::limits;

/// How endpoints are chosen. Each name stands for the algorithm of the same name in gRPC or Envoy where
/// there is one; the files beside this one say which source each follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// Consistent hashing on a ring, as Envoy and gRPC build it (gRFC A42).
    RingHash {
        /// Points per unit of weight: see [`limits::BALANCE_POINTS`].
        points: u32,
        /// The total instead, with Envoy's `minimum_ring_size`: gives Envoy's counts of points exactly,
        /// and moves keys between endpoints that stay when it changes them.
        min_ring_size: Option<u32>,
        max_ring_size: u32,
    },
    /// The ring of nginx, `hash ... consistent`.
    Ketama,
    /// Google's Maglev (NSDI 2016). None = a prime that suits the number of endpoints.
    Maglev { table_size: Option<u32> },
    /// Highest random weight (Thaler and Ravishankar 1996), weighted. Costs a step per endpoint.
    Rendezvous,
    /// The least calls under way of some random ones (gRFC A48).
    LeastRequest { choices: u32 },
    /// The least latency times calls under way of some random ones (Finagle's `PeakEwma`).
    PeakEwma { choices: u32, decay: Duration },
    /// In proportion to the weights, as evenly interleaved as nginx does it.
    WeightedRoundRobin,
    /// In turn, whatever the weights are.
    RoundRobin,
    /// At random, in proportion to the weights.
    Random,
    /// The first one that can be taken, in the order of their ids or in one of the client's own.
    PickFirst { shuffle: bool },
}

/// When endpoints that fail more than others are left out for a while (gRFC A50, and Envoy's
/// consecutive errors).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    pub on: bool,
    pub interval: Duration,
    /// How long an endpoint is ejected the first time; the second time twice as long, and so on.
    pub base: Duration,
    pub max: Duration,
    /// Of all endpoints; at least one may always be ejected, and one always stays.
    pub max_percent: u32,
    pub success_rate_hosts: u32,
    pub success_rate_calls: u32,
    /// In thousandths.
    pub stdev_factor: u32,
    pub failure_percent: u32,
    pub failure_hosts: u32,
    pub failure_calls: u32,
    /// Failures in a row that eject at once; 0 = never.
    pub streak: u32,
}

/// A checked policy. Its [`Display`](fmt::Display) is canonical: `name?parameter=value&...` with what
/// differs from the defaults, in one order, and parses back to the same policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    algorithm: Algorithm,
    bound_percent: Option<u32>,
    zone: bool,
    subset: Option<u32>,
    panic_percent: u32,
    slow_start: Option<Duration>,
    ejection: Ejection,
}

/// All names, in the order in which an error lists them.
const NAMES: [&str; 10] = [
    "ring_hash",
    "ketama",
    "maglev",
    "rendezvous",
    "least_request",
    "peak_ewma",
    "weighted_round_robin",
    "round_robin",
    "random",
    "pick_first",
];

/// All parameters, in the order in which they are written.
const PARAMETERS: [&str; 24] = [
    "points",
    "min_ring_size",
    "max_ring_size",
    "table_size",
    "bound",
    "choice_count",
    "decay_ms",
    "shuffle",
    "zone",
    "subset_size",
    "panic_percent",
    "slow_start_ms",
    "ejection",
    "ejection_interval_ms",
    "ejection_base_ms",
    "ejection_max_ms",
    "ejection_max_percent",
    "success_rate_hosts",
    "success_rate_calls",
    "success_rate_stdev_factor",
    "failure_percent",
    "failure_percent_hosts",
    "failure_percent_calls",
    "consecutive_failures",
];

impl Default for Ejection {
    fn default() -> Self {
        Ejection {
            on: true,
            interval: Duration::from_millis(limits::DEFAULT_EJECTION_INTERVAL_MS),
            base: Duration::from_millis(limits::DEFAULT_EJECTION_BASE_MS),
            max: Duration::from_millis(limits::DEFAULT_EJECTION_MAX_MS),
            max_percent: limits::DEFAULT_EJECTION_MAX_PERCENT,
            success_rate_hosts: limits::DEFAULT_EJECTION_HOSTS,
            success_rate_calls: limits::DEFAULT_EJECTION_SUCCESS_RATE_CALLS,
            stdev_factor: limits::DEFAULT_EJECTION_STDEV_FACTOR,
            failure_percent: limits::DEFAULT_EJECTION_FAILURE_PERCENT,
            failure_hosts: limits::DEFAULT_EJECTION_HOSTS,
            failure_calls: limits::DEFAULT_EJECTION_FAILURE_PERCENT_CALLS,
            streak: limits::DEFAULT_EJECTION_STREAK,
        }
    }
}

/// `least_request`.
impl Default for Policy {
    fn default() -> Self {
        Policy::of(Algorithm::LeastRequest { choices: limits::DEFAULT_BALANCE_CHOICES })
    }
}

impl Policy {
    /// The algorithm of this name with its defaults.
    pub fn new(name: &str) -> Result<Policy, Error> {
        let choices = limits::DEFAULT_BALANCE_CHOICES;
        let algorithm = match name {
            "ring_hash" => Algorithm::RingHash {
                points: limits::DEFAULT_BALANCE_POINTS,
                min_ring_size: None,
                max_ring_size: GREATEST_RING,
            },
            "ketama" => Algorithm::Ketama,
            "maglev" => Algorithm::Maglev { table_size: None },
            "rendezvous" => Algorithm::Rendezvous,
            "least_request" => Algorithm::LeastRequest { choices },
            "peak_ewma" => {
                let decay = Duration::from_millis(limits::DEFAULT_BALANCE_DECAY_MS);
                Algorithm::PeakEwma { choices, decay }
            }
            "weighted_round_robin" => Algorithm::WeightedRoundRobin,
            "round_robin" => Algorithm::RoundRobin,
            "random" => Algorithm::Random,
            "pick_first" => Algorithm::PickFirst { shuffle: false },
            _ => return Err(Error::invalid("policy", name, NAMES.join(", "))),
        };
        Ok(Policy::of(algorithm))
    }

    /// A name with parameters as the registry's record of a service holds them. Their order does not
    /// matter; one that is given twice, or that the policy does not have, is refused.
    pub fn parse<'a>(
        name: &str,
        parameters: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Policy, Error> {
        let mut policy = Policy::new(name)?;
        let mut seen = BTreeSet::new();
        for (parameter, value) in parameters {
            policy.set(parameter, value)?;
            if !seen.insert(parameter) {
                return Err(Error::invalid(field(parameter), value, "given once"));
            }
        }
        let Algorithm::RingHash { min_ring_size: Some(min), max_ring_size, .. } = policy.algorithm
        else {
            return Ok(policy);
        };
        if min > max_ring_size {
            let allowed = format!("at most max_ring_size, {max_ring_size}");
            return Err(Error::invalid(field("min_ring_size"), min.to_string(), allowed));
        }
        Ok(policy)
    }

    /// The policy that the record of a service holds; None = clients choose. Errors name the fields of the
    /// record.
    pub fn of_service(
        name: &str,
        parameters: &BTreeMap<String, String>,
    ) -> Result<Option<Policy>, Error> {
        const PARAMETERS: &str = "service.policy_parameters";
        let mut parameters = parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        if name.is_empty() {
            return match parameters.next() {
                None => Ok(None),
                // Ignoring it would look like success.
                Some((parameter, value)) => {
                    let field = format!("{PARAMETERS}[{parameter}]");
                    Err(Error::invalid(field, value, "none without a policy"))
                }
            };
        }
        Policy::parse(name, parameters).map(Some).map_err(|error| match error {
            Error::Invalid { field, value, allowed } => {
                let field = match field.strip_prefix(PARAMETER) {
                    None => "service.policy".to_owned(),
                    Some("") => PARAMETERS.to_owned(),
                    Some(parameter) => format!("{PARAMETERS}[{}]", parameter.trim_start()),
                };
                Error::Invalid { field, value, allowed }
            }
            error => error,
        })
    }

    fn of(algorithm: Algorithm) -> Policy {
        Policy {
            algorithm,
            bound_percent: None,
            zone: false,
            subset: None,
            panic_percent: limits::DEFAULT_BALANCE_PANIC_PERCENT,
            slow_start: None,
            ejection: Ejection::default(),
        }
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub fn name(&self) -> &'static str {
        match self.algorithm {
            Algorithm::RingHash { .. } => "ring_hash",
            Algorithm::Ketama => "ketama",
            Algorithm::Maglev { .. } => "maglev",
            Algorithm::Rendezvous => "rendezvous",
            Algorithm::LeastRequest { .. } => "least_request",
            Algorithm::PeakEwma { .. } => "peak_ewma",
            Algorithm::WeightedRoundRobin => "weighted_round_robin",
            Algorithm::RoundRobin => "round_robin",
            Algorithm::Random => "random",
            Algorithm::PickFirst { .. } => "pick_first",
        }
    }

    /// True when the hash of a call decides which endpoint gets it.
    pub fn hashes(&self) -> bool {
        match self.algorithm {
            Algorithm::RingHash { .. }
            | Algorithm::Ketama
            | Algorithm::Maglev { .. }
            | Algorithm::Rendezvous => true,
            Algorithm::LeastRequest { .. }
            | Algorithm::PeakEwma { .. }
            | Algorithm::WeightedRoundRobin
            | Algorithm::RoundRobin
            | Algorithm::Random
            | Algorithm::PickFirst { .. } => false,
        }
    }

    /// Calls under way at one endpoint, in percent of the average, that a hash may not exceed.
    pub fn bound_percent(&self) -> Option<u32> {
        self.bound_percent
    }

    /// True when endpoints of the client's own zone come first.
    pub fn prefers_zone(&self) -> bool {
        self.zone
    }

    pub fn subset_size(&self) -> Option<u32> {
        self.subset
    }

    pub fn panic_percent(&self) -> u32 {
        self.panic_percent
    }

    pub fn slow_start(&self) -> Option<Duration> {
        self.slow_start
    }

    pub fn ejection(&self) -> &Ejection {
        &self.ejection
    }

    /// Sets one parameter.
    pub fn set(&mut self, parameter: &str, value: &str) -> Result<(), Error> {
        if self.get(parameter).is_none() {
            let known: Vec<_> =
                PARAMETERS.into_iter().filter(|name| self.get(name).is_some()).collect();
            return Err(Error::invalid(PARAMETER, parameter, known.join(", ")));
        }
        let given = Given { parameter, value };
        let ejection = &mut self.ejection;
        match (parameter, &mut self.algorithm) {
            ("points", Algorithm::RingHash { points, .. }) => {
                *points = given.number(limits::BALANCE_POINTS)?;
            }
            ("min_ring_size", Algorithm::RingHash { min_ring_size, .. }) => {
                *min_ring_size = given.unless("off", |given| given.number(limits::BALANCE_RING))?;
            }
            ("max_ring_size", Algorithm::RingHash { max_ring_size, .. }) => {
                *max_ring_size = given.number(limits::BALANCE_RING)?;
            }
            ("table_size", Algorithm::Maglev { table_size }) => {
                *table_size = given.unless("auto", Given::prime)?;
            }
            ("choice_count", Algorithm::LeastRequest { choices })
            | ("choice_count", Algorithm::PeakEwma { choices, .. }) => {
                *choices = given.number(limits::BALANCE_CHOICES)?;
            }
            ("decay_ms", Algorithm::PeakEwma { decay, .. }) => {
                *decay = given.duration(limits::BALANCE_DECAY_MS)?;
            }
            ("shuffle", Algorithm::PickFirst { shuffle }) => {
                *shuffle = given.either("on", "off")?;
            }
            ("bound", _) => self.bound_percent = given.unless("off", Given::bound)?,
            ("zone", _) => self.zone = given.either("prefer", "ignore")?,
            ("subset_size", _) => {
                self.subset = given.unless("off", |given| given.number(limits::BALANCE_SUBSET))?;
            }
            ("panic_percent", _) => self.panic_percent = given.number(0..=100)?,
            ("slow_start_ms", _) => {
                let duration = |given: &Given<'_>| given.duration(limits::BALANCE_SLOW_START_MS);
                self.slow_start = given.unless("off", duration)?;
            }
            ("ejection", _) => ejection.on = given.either("on", "off")?,
            ("ejection_interval_ms", _) => {
                ejection.interval = given.duration(limits::EJECTION_MS)?;
            }
            ("ejection_base_ms", _) => ejection.base = given.duration(limits::EJECTION_MS)?,
            ("ejection_max_ms", _) => ejection.max = given.duration(limits::EJECTION_MS)?,
            ("ejection_max_percent", _) => ejection.max_percent = given.number(0..=100)?,
            ("success_rate_hosts", _) => {
                ejection.success_rate_hosts = given.number(limits::EJECTION_COUNT)?;
            }
            ("success_rate_calls", _) => {
                ejection.success_rate_calls = given.number(limits::EJECTION_COUNT)?;
            }
            ("success_rate_stdev_factor", _) => {
                ejection.stdev_factor = given.number(limits::EJECTION_STDEV_FACTOR)?;
            }
            ("failure_percent", _) => ejection.failure_percent = given.number(0..=100)?,
            ("failure_percent_hosts", _) => {
                ejection.failure_hosts = given.number(limits::EJECTION_COUNT)?;
            }
            ("failure_percent_calls", _) => {
                ejection.failure_calls = given.number(limits::EJECTION_COUNT)?;
            }
            ("consecutive_failures", _) => {
                ejection.streak = given.number(limits::EJECTION_STREAK)?;
            }
            (parameter, _) => unreachable!("{parameter} has a value and cannot be set"),
        }
        Ok(())
    }

    /// A parameter's value as text; None when the policy has no such parameter.
    pub fn get(&self, parameter: &str) -> Option<String> {
        let switch = |on: bool| if on { "on" } else { "off" }.to_owned();
        let millis = |duration: Duration| duration.as_millis().to_string();
        let number = |number: u32| number.to_string();
        let or = |number: Option<u32>, none: &str| {
            number.map_or_else(|| none.to_owned(), |number| number.to_string())
        };
        let ejection = &self.ejection;
        Some(match (parameter, self.algorithm) {
            ("points", Algorithm::RingHash { points, .. }) => number(points),
            ("min_ring_size", Algorithm::RingHash { min_ring_size, .. }) => {
                or(min_ring_size, "off")
            }
            ("max_ring_size", Algorithm::RingHash { max_ring_size, .. }) => number(max_ring_size),
            ("table_size", Algorithm::Maglev { table_size }) => or(table_size, "auto"),
            ("choice_count", Algorithm::LeastRequest { choices }) => number(choices),
            ("choice_count", Algorithm::PeakEwma { choices, .. }) => number(choices),
            ("decay_ms", Algorithm::PeakEwma { decay, .. }) => millis(decay),
            ("shuffle", Algorithm::PickFirst { shuffle }) => switch(shuffle),
            ("bound", _) if self.hashes() => self.bound_percent.map_or("off".to_owned(), decimal),
            ("zone", _) => if self.zone { "prefer" } else { "ignore" }.to_owned(),
            ("subset_size", _) => or(self.subset, "off"),
            ("panic_percent", _) => number(self.panic_percent),
            ("slow_start_ms", _) => self.slow_start.map_or("off".to_owned(), millis),
            ("ejection", _) => switch(ejection.on),
            ("ejection_interval_ms", _) => millis(ejection.interval),
            ("ejection_base_ms", _) => millis(ejection.base),
            ("ejection_max_ms", _) => millis(ejection.max),
            ("ejection_max_percent", _) => number(ejection.max_percent),
            ("success_rate_hosts", _) => number(ejection.success_rate_hosts),
            ("success_rate_calls", _) => number(ejection.success_rate_calls),
            ("success_rate_stdev_factor", _) => number(ejection.stdev_factor),
            ("failure_percent", _) => number(ejection.failure_percent),
            ("failure_percent_hosts", _) => number(ejection.failure_hosts),
            ("failure_percent_calls", _) => number(ejection.failure_calls),
            ("consecutive_failures", _) => number(ejection.streak),
            _ => return None,
        })
    }

    /// The parameters that differ from the defaults, as the registry's record of a service holds them.
    pub fn parameters(&self) -> Vec<(&'static str, String)> {
        let default = Policy::new(self.name()).expect("a policy's own name is known");
        let mut parameters = self.all_parameters();
        parameters.retain(|(name, value)| default.get(name).as_ref() != Some(value));
        parameters
    }

    /// Every parameter that the policy has, with its value.
    pub fn all_parameters(&self) -> Vec<(&'static str, String)> {
        PARAMETERS.into_iter().filter_map(|name| Some((name, self.get(name)?))).collect()
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        for (i, (name, value)) in self.parameters().into_iter().enumerate() {
            write!(f, "{}{name}={value}", if i == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

/// `name?parameter=value&...`. Nothing in it needs percent-encoding, so nothing is decoded.
impl FromStr for Policy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Policy, Error> {
        let Some((name, query)) = text.split_once('?') else { return Policy::parse(text, []) };
        let mut parameters = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let pair = pair
                .split_once('=')
                .ok_or_else(|| Error::invalid(PARAMETER, pair, "name=value"))?;
            parameters.push(pair);
        }
        Policy::parse(name, parameters)
    }
}

const GREATEST_RING: u32 = *limits::BALANCE_RING.end() as u32;

/// How errors call one of them.
const PARAMETER: &str = "policy parameter";

fn field(parameter: &str) -> String {
    format!("{PARAMETER} {parameter}")
}

pub(crate) fn is_prime(n: u32) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= u64::from(n)).all(|d| !u64::from(n).is_multiple_of(d))
}

/// 125 as 1.25.
fn decimal(percent: u32) -> String {
    let text = format!("{}.{:02}", percent / 100, percent % 100);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

struct Given<'a> {
    parameter: &'a str,
    value: &'a str,
}

impl Given<'_> {
    fn invalid(&self, allowed: String) -> Error {
        Error::invalid(field(self.parameter), self.value, allowed)
    }

    /// Digits alone; every range that is asked for ends within 32 bits.
    fn number(&self, range: RangeInclusive<u64>) -> Result<u32, Error> {
        let digits = self.value.bytes().all(|byte| byte.is_ascii_digit());
        let number = self.value.parse().ok().filter(|number| digits && range.contains(number));
        number
            .and_then(|number| u32::try_from(number).ok())
            .ok_or_else(|| self.invalid(format!("{}..={}", range.start(), range.end())))
    }

    fn duration(&self, range: RangeInclusive<u64>) -> Result<Duration, Error> {
        self.number(range).map(|ms| Duration::from_millis(u64::from(ms)))
    }

    fn unless<V>(
        &self,
        none: &str,
        value: impl FnOnce(&Self) -> Result<V, Error>,
    ) -> Result<Option<V>, Error> {
        if self.value == none {
            return Ok(None);
        }
        value(self).map(Some).map_err(|error| match error {
            Error::Invalid { field, value, allowed } => {
                Error::Invalid { field, value, allowed: format!("{allowed} or {none}") }
            }
            other => other,
        })
    }

    fn either(&self, yes: &str, no: &str) -> Result<bool, Error> {
        match self.value {
            value if value == yes => Ok(true),
            value if value == no => Ok(false),
            _ => Err(self.invalid(format!("{yes} or {no}"))),
        }
    }

    fn prime(&self) -> Result<u32, Error> {
        let number = self.number(limits::BALANCE_TABLE)?;
        if !is_prime(number) {
            let range = limits::BALANCE_TABLE;
            return Err(self.invalid(format!("a prime of {}..={}", range.start(), range.end())));
        }
        Ok(number)
    }

    /// `1.25`, or `on` for the default, in percent.
    fn bound(&self) -> Result<u32, Error> {
        if self.value == "on" {
            return Ok(limits::DEFAULT_BALANCE_BOUND_PERCENT);
        }
        let range = limits::BALANCE_BOUND_PERCENT;
        let (whole, fraction) = self.value.split_once('.').unwrap_or((self.value, "0"));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let percent = match (whole.parse::<u32>(), fraction.len()) {
            (Ok(whole), 1..=2) if whole <= 1_000 && digits(self.value.get(..1).unwrap_or("")) => {
                let scale = if fraction.len() == 1 { 10 } else { 1 };
                let fraction = fraction.parse::<u32>().ok().filter(|_| digits(fraction));
                fraction.map(|fraction| u64::from(whole * 100 + fraction * scale))
            }
            _ => None,
        };
        let percent = percent.filter(|percent| range.contains(percent)).ok_or_else(|| {
            let (least, most) = (*range.start() as u32, *range.end() as u32);
            self.invalid(format!("{}..={} with two decimals, on", decimal(least), decimal(most)))
        })?;
        Ok(percent as u32)
    }
}
