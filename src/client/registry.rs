//! Typed calls of the registry. Requests and answers are the messages of `proto/`; a `session` makes
//! a write exactly once: it gets an id, and is repeated until it is answered or its deadline passes.

use super::connection::Client;
use super::session::Session;
use crate::error::Error;
use crate::limits;
use crate::proto::v1::{self, Consistency};

impl From<v1::Instance> for v1::RegisterRequest {
    fn from(instance: v1::Instance) -> Self {
        v1::RegisterRequest { instance: Some(instance), request_id: None }
    }
}

impl From<v1::Service> for v1::PutServiceRequest {
    fn from(service: v1::Service) -> Self {
        v1::PutServiceRequest { service: Some(service), ..Default::default() }
    }
}

/// An error of a write says with [`Error::definite`] whether the write certainly did not take place.
impl Client {
    /// Creates or replaces an instance. It is ephemeral when its `session` is set, for instance to
    /// [`Session::id`].
    pub async fn register(
        &self,
        request: impl Into<v1::RegisterRequest>,
        session: Option<&Session>,
    ) -> Result<v1::RegisterResponse, Error> {
        self.write(request.into(), session).await
    }

    pub async fn deregister(
        &self,
        request: v1::DeregisterRequest,
        session: Option<&Session>,
    ) -> Result<v1::DeregisterResponse, Error> {
        self.write(request, session).await
    }

    pub async fn update_instance(
        &self,
        request: v1::UpdateInstanceRequest,
        session: Option<&Session>,
    ) -> Result<v1::UpdateInstanceResponse, Error> {
        self.write(request, session).await
    }

    pub async fn get_instance(
        &self,
        request: v1::GetInstanceRequest,
    ) -> Result<v1::GetInstanceResponse, Error> {
        self.call(request).await
    }

    /// Discovery.
    pub async fn list_instances(
        &self,
        request: v1::ListInstancesRequest,
    ) -> Result<v1::ListInstancesResponse, Error> {
        self.call(request).await
    }

    pub async fn put_service(
        &self,
        request: impl Into<v1::PutServiceRequest>,
        session: Option<&Session>,
    ) -> Result<v1::PutServiceResponse, Error> {
        self.write(request.into(), session).await
    }

    pub async fn delete_service(
        &self,
        request: v1::DeleteServiceRequest,
        session: Option<&Session>,
    ) -> Result<v1::DeleteServiceResponse, Error> {
        self.write(request, session).await
    }

    pub async fn get_service(
        &self,
        request: v1::GetServiceRequest,
    ) -> Result<v1::GetServiceResponse, Error> {
        self.call(request).await
    }

    /// One page.
    pub async fn list_services(
        &self,
        request: v1::ListServicesRequest,
    ) -> Result<v1::ListServicesResponse, Error> {
        self.call(request).await
    }

    /// Every service whose name starts with `prefix`, page by page. The pages are read one after the
    /// other: a service that is put or deleted meanwhile may be in or not.
    pub async fn all_services(
        &self,
        namespace: &str,
        prefix: &str,
        consistency: Consistency,
    ) -> Result<Vec<v1::Service>, Error> {
        let mut services: Vec<v1::Service> = Vec::new();
        loop {
            let page = self
                .list_services(v1::ListServicesRequest {
                    namespace: namespace.to_owned(),
                    prefix: prefix.to_owned(),
                    limit: limits::DEFAULT_PAGE as u32,
                    after: services.last().map(|last| last.name.clone()).unwrap_or_default(),
                    consistency: consistency.into(),
                })
                .await?;
            let stuck = page.services.is_empty();
            services.extend(page.services);
            if !page.more || stuck {
                return Ok(services);
            }
        }
    }

    pub async fn put_namespace(
        &self,
        request: v1::PutNamespaceRequest,
        session: Option<&Session>,
    ) -> Result<v1::PutNamespaceResponse, Error> {
        self.write(request, session).await
    }

    pub async fn delete_namespace(
        &self,
        request: v1::DeleteNamespaceRequest,
        session: Option<&Session>,
    ) -> Result<v1::DeleteNamespaceResponse, Error> {
        self.write(request, session).await
    }

    pub async fn list_namespaces(
        &self,
        request: v1::ListNamespacesRequest,
    ) -> Result<v1::ListNamespacesResponse, Error> {
        self.call(request).await
    }
}
