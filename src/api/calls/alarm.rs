//! Calls of alarms.

use std::sync::Arc;

use super::{Page, Read, Write, command, fitting};
use crate::api::convert;
use crate::error::Error;
use crate::proto::v1::{self, Consistency, Header};
use crate::state::{Alarm, Command, Op, Reply, State};

impl Write for v1::PutAlarmRequest {
    type Response = v1::PutAlarmResponse;

    fn command(self) -> Result<Command, Error> {
        let (name, rule) = convert::alarm::rule(self.alarm)?;
        Ok(command(self.request_id, Op::PutAlarm { name, rule: Box::new(rule) }))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::AlarmPut { changed, mod_revision } = reply else { return None };
        Some(v1::PutAlarmResponse { header: Some(header), changed, mod_revision })
    }
}

impl Write for v1::DeleteAlarmRequest {
    type Response = v1::DeleteAlarmResponse;

    fn command(self) -> Result<Command, Error> {
        let name = convert::alarm::alarm_name(self.namespace, self.name);
        Ok(command(self.request_id, Op::DeleteAlarm { name }))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::AlarmDeleted { removed } = reply else { return None };
        Some(v1::DeleteAlarmResponse { header: Some(header), removed })
    }
}

impl Read for v1::ListAlarmsRequest {
    type Query = Page;
    type Found = (Vec<Arc<Alarm>>, bool);
    type Response = v1::ListAlarmsResponse;

    fn query(self) -> Result<(Consistency, Page), Error> {
        let Self { namespace, prefix, limit, after, consistency } = self;
        let page = Page::new(namespace, prefix, after, limit)?;
        Ok((convert::consistency(consistency)?, page))
    }

    fn find(query: &Page, state: &State) -> Result<Self::Found, Error> {
        let Page { namespace, prefix, after, limit } = query;
        Ok(state.alarms(namespace, prefix, after, *limit))
    }

    fn respond(header: Header, (found, more): Self::Found) -> Result<Self::Response, Error> {
        let alarms = found.iter().map(|alarm| convert::alarm::alarm(alarm)).collect();
        fitting(found.len(), v1::ListAlarmsResponse { header: Some(header), alarms, more })
    }
}
