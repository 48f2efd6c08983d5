//! Calls of global transactions. How one is waited for stands in [`crate::api::saga`].

use std::sync::Arc;

use super::{Page, Read, Write, command, fitting};
use crate::api::convert;
use crate::api::convert::saga::{self, saga_name};
use crate::error::Error;
use crate::node::find_saga;
use crate::proto::v1::{self, Consistency, Header};
use crate::state::{Command, Op, Reply, Saga, SagaName, SagaStatus, State};

impl Write for v1::BeginSagaRequest {
    type Response = v1::BeginSagaResponse;

    fn command(self) -> Result<Command, Error> {
        let (request_id, begin) = saga::begin(self)?;
        Ok(command(request_id, Op::BeginSaga(Box::new(begin))))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::SagaBegun { gid, status, created, mod_revision: _ } = reply else { return None };
        let status = saga::status(status).into();
        Some(v1::BeginSagaResponse { header: Some(header), gid, status, created })
    }
}

impl Write for v1::SubmitSagaRequest {
    type Response = v1::SubmitSagaResponse;

    fn command(self) -> Result<Command, Error> {
        let Self { namespace, gid, request_id } = self;
        Ok(command(request_id, Op::SubmitSaga { name: saga_name(namespace, gid) }))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let (status, changed) = turned(reply)?;
        Some(v1::SubmitSagaResponse { header: Some(header), status, changed })
    }
}

impl Write for v1::AbortSagaRequest {
    type Response = v1::AbortSagaResponse;

    fn command(self) -> Result<Command, Error> {
        let Self { namespace, gid, reason, request_id } = self;
        Ok(command(request_id, Op::AbortSaga { name: saga_name(namespace, gid), reason }))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let (status, changed) = turned(reply)?;
        Some(v1::AbortSagaResponse { header: Some(header), status, changed })
    }
}

impl Write for v1::OrderSagaRequest {
    type Response = v1::OrderSagaResponse;

    fn command(self) -> Result<Command, Error> {
        let Self { namespace, gid, order, request_id } = self;
        let (name, order) = (saga_name(namespace, gid), saga::order(order)?);
        Ok(command(request_id, Op::OrderSaga { name, order }))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let (status, changed) = turned(reply)?;
        Some(v1::OrderSagaResponse { header: Some(header), status, changed })
    }
}

impl Write for v1::RegisterBranchRequest {
    type Response = v1::RegisterBranchResponse;

    fn command(self) -> Result<Command, Error> {
        let Self { namespace, gid, branch, request_id } = self;
        let branch = branch.ok_or_else(|| Error::invalid("branch", "", "a branch"))?;
        if branch.id.is_empty() {
            // Its number is not known before it has one.
            return Err(Error::invalid("branch.id", "", "an id, so that it is registered once"));
        }
        let plan = Box::new(saga::plan(branch, 0));
        Ok(command(request_id, Op::RegisterBranch { name: saga_name(namespace, gid), plan }))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::BranchRegistered { number, created } = reply else { return None };
        Some(v1::RegisterBranchResponse { header: Some(header), number, created })
    }
}

fn turned(reply: Reply) -> Option<(i32, bool)> {
    let Reply::SagaTurned { status, changed, mod_revision: _ } = reply else { return None };
    Some((saga::status(status).into(), changed))
}

impl Read for v1::GetSagaRequest {
    type Query = SagaName;
    type Found = Arc<Saga>;
    type Response = v1::GetSagaResponse;

    fn query(self) -> Result<(Consistency, SagaName), Error> {
        let name = saga_name(self.namespace, self.gid);
        name.check()?;
        Ok((convert::consistency(self.consistency)?, name))
    }

    fn find(name: &SagaName, state: &State) -> Result<Arc<Saga>, Error> {
        find_saga(state, name)
    }

    fn respond(header: Header, found: Arc<Saga>) -> Result<Self::Response, Error> {
        let saga = Some(saga::saga(&found, true));
        Ok(v1::GetSagaResponse { header: Some(header), saga })
    }
}

impl Read for v1::ListSagasRequest {
    type Query = (Option<SagaStatus>, Page);
    type Found = (Vec<Arc<Saga>>, bool);
    type Response = v1::ListSagasResponse;

    fn query(self) -> Result<(Consistency, Self::Query), Error> {
        let Self { namespace, status, prefix, limit, after, consistency } = self;
        let page = Page::new(namespace, prefix, after, limit)?;
        Ok((convert::consistency(consistency)?, (saga::wanted_status(status)?, page)))
    }

    fn find((status, page): &Self::Query, state: &State) -> Result<Self::Found, Error> {
        let Page { namespace, prefix, after, limit } = page;
        Ok(state.sagas(namespace, *status, prefix, after, *limit))
    }

    fn respond(header: Header, (found, more): Self::Found) -> Result<Self::Response, Error> {
        let sagas = found.iter().map(|it| saga::saga(it, false)).collect();
        fitting(found.len(), v1::ListSagasResponse { header: Some(header), sagas, more })
    }
}
