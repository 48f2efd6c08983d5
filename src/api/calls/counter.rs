//! Calls of counters.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Read, Write, command, fitting};
use crate::api::convert;
use crate::api::convert::counter::{counter_name, kind};
use crate::error::Error;
use crate::limits;
use crate::proto::v1::{self, Consistency, Header};
use crate::state::{self, Command, Counter, CounterFilter, CounterName, Op, Pairs, Reply, State};

impl Write for v1::AddCounterRequest {
    type Response = v1::AddCounterResponse;

    fn command(self) -> Result<Command, Error> {
        let Self { namespace, name, labels, kind, delta, floor, ceil, request_id } = self;
        let name = counter_name(namespace, name, labels);
        let kind = self::kind(kind)?;
        let addition = state::Addition { name, kind, delta, floor, ceil };
        Ok(command(request_id, Op::AddCounter(Box::new(addition))))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::CounterChanged { value, changed, mod_revision: _ } = reply else { return None };
        Some(v1::AddCounterResponse { header: Some(header), value, changed })
    }
}

impl Write for v1::SetCounterRequest {
    type Response = v1::SetCounterResponse;

    fn command(self) -> Result<Command, Error> {
        let Self { namespace, name, labels, kind, value, expected, request_id } = self;
        let name = counter_name(namespace, name, labels);
        let kind = self::kind(kind)?;
        let setting = state::Setting { name, kind, value, expected };
        Ok(command(request_id, Op::SetCounter(Box::new(setting))))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::CounterChanged { value, changed, mod_revision: _ } = reply else { return None };
        Some(v1::SetCounterResponse { header: Some(header), value, changed })
    }
}

impl Write for v1::ResetCounterRequest {
    type Response = v1::ResetCounterResponse;

    fn command(self) -> Result<Command, Error> {
        let Self { namespace, name, labels, expected, request_id } = self;
        let name = counter_name(namespace, name, labels);
        Ok(command(request_id, Op::ResetCounter { name, expected }))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::CounterChanged { value, changed, mod_revision: _ } = reply else { return None };
        Some(v1::ResetCounterResponse { header: Some(header), value, changed })
    }
}

impl Write for v1::DeleteCounterRequest {
    type Response = v1::DeleteCounterResponse;

    fn command(self) -> Result<Command, Error> {
        let name = counter_name(self.namespace, self.name, self.labels);
        Ok(command(self.request_id, Op::DeleteCounter { name }))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::CounterDeleted { removed } = reply else { return None };
        Some(v1::DeleteCounterResponse { header: Some(header), removed })
    }
}

/// What is asked of counters, and when: windows end at the time of the question.
#[derive(Debug)]
pub struct At<Q> {
    now_ms: u64,
    what: Q,
}

impl<Q> At<Q> {
    fn new(what: Q) -> At<Q> {
        At { now_ms: 0, what }
    }

    /// The clock of the state stands still while nothing is written, that of the node may be behind it.
    fn now_ms(&self, state: &State) -> u64 {
        self.now_ms.max(state.meta().now_ms)
    }
}

impl Read for v1::GetCounterRequest {
    type Query = At<CounterName>;
    type Found = (Arc<Counter>, u64);
    type Response = v1::GetCounterResponse;

    fn query(self) -> Result<(Consistency, Self::Query), Error> {
        let name = counter_name(self.namespace, self.name, self.labels);
        name.check()?;
        Ok((convert::consistency(self.consistency)?, At::new(name)))
    }

    fn stamp(query: &mut Self::Query, now_ms: u64) {
        query.now_ms = now_ms;
    }

    fn find(query: &Self::Query, state: &State) -> Result<Self::Found, Error> {
        let CounterName { namespace, name, labels } = &query.what;
        let found = state.counter(namespace, name, labels).cloned();
        let found = found.ok_or_else(|| Error::NotFound {
            kind: "counter".to_owned(),
            name: format!("{namespace}/{name}{labels:?}"),
        });
        Ok((found?, query.now_ms(state)))
    }

    fn respond(header: Header, (found, now_ms): Self::Found) -> Result<Self::Response, Error> {
        let counter = Some(convert::counter::counter(&found, Some(now_ms)));
        Ok(v1::GetCounterResponse { header: Some(header), counter })
    }
}

#[derive(Debug)]
pub struct Counters {
    namespace: String,
    filter: CounterFilter,
    after: Option<(String, Pairs)>,
    limit: usize,
}

impl Read for v1::ListCountersRequest {
    type Query = At<Counters>;
    type Found = (Vec<Arc<Counter>>, bool, u64);
    type Response = v1::ListCountersResponse;

    fn query(self) -> Result<(Consistency, Self::Query), Error> {
        let Self { namespace, prefix, labels, limit, after_name, after_labels, consistency } = self;
        let namespace = convert::namespace(namespace);
        state::check_name("", "namespace", &namespace)?;
        state::check_text("prefix", &prefix, limits::NAME_BYTES)?;
        state::check_text("after_name", &after_name, limits::NAME_BYTES)?;
        let checked = |field: &str, labels: BTreeMap<String, String>| {
            let labels = convert::pairs(labels);
            state::check_labels(field, &labels).map(|()| labels)
        };
        let filter = CounterFilter { prefix, labels: checked("labels", labels)? };
        let after_labels = checked("after_labels", after_labels)?;
        let after = (!after_name.is_empty()).then_some((after_name, after_labels));
        let query = Counters { namespace, filter, after, limit: convert::page(limit)? };
        Ok((convert::consistency(consistency)?, At::new(query)))
    }

    fn stamp(query: &mut Self::Query, now_ms: u64) {
        query.now_ms = now_ms;
    }

    fn find(query: &Self::Query, state: &State) -> Result<Self::Found, Error> {
        let Counters { namespace, filter, after, limit } = &query.what;
        let after = after.as_ref().map(|(name, labels)| (name.as_str(), labels));
        let (found, more) = state.counters(namespace, filter, after, *limit);
        Ok((found, more, query.now_ms(state)))
    }

    fn respond(
        header: Header,
        (found, more, now_ms): Self::Found,
    ) -> Result<Self::Response, Error> {
        let counter = |counter: &Arc<Counter>| convert::counter::counter(counter, Some(now_ms));
        let counters = found.iter().map(counter).collect();
        fitting(found.len(), v1::ListCountersResponse { header: Some(header), counters, more })
    }
}
