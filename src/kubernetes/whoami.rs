//! Who we are, as the API server knows us: a name for the audit that nobody can make up.

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::{Api, api::PostParams};

use super::{Cluster, patiently};

impl Cluster {
    /// Our user name; a pod's is `system:serviceaccount:NAMESPACE:NAME`. Any authenticated user may ask (Kubernetes 1.28 and later:
    /// `SelfSubjectReview`).
    pub async fn own_name(&self) -> anyhow::Result<String> {
        let api: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let (parameters, review) = (PostParams::default(), SelfSubjectReview::default());
        let answer = patiently(|| api.create(&parameters, &review)).await;
        let answer = answer.map_err(|error| self.explain("create", "SelfSubjectReview", "for ourselves", error))?;
        let user = answer.status.and_then(|status| status.user_info).and_then(|info| info.username);
        Ok(user.unwrap_or_else(|| "an unnamed user".to_owned()))
    }
}
