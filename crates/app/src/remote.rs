use nodes::NodeAddress;
use store::NodeRow;
use tokio::sync::watch;

use crate::App;
use crate::error::{AppError, ErrorCode, sentence};
use crate::node_list::NodeView;

impl App {
    /// The nodes and what was last heard from them.
    pub fn nodes(&self) -> Vec<NodeView> {
        self.inner.nodes.views()
    }

    /// The nodes and every change to them.
    pub fn watch_nodes(&self) -> watch::Receiver<Vec<NodeView>> {
        self.inner.nodes.subscribe()
    }

    /// Adds a node and asks it what it is. It is kept whatever it answers: it may be off now.
    ///
    /// # Errors
    /// `BadRequest` for an address that can't be one, or one that is on the list.
    pub async fn add_node(&self, url: &str, key: Option<String>) -> Result<NodeView, AppError> {
        let key = key.map(|key| key.trim().to_owned()).filter(|key| !key.is_empty());
        let address = NodeAddress::parse(url, key.map(chat::Redacted))
            .map_err(|error| AppError::new(ErrorCode::BadRequest, sentence(&error.to_string())))?;
        let view = self.inner.nodes.insert(None, address.clone(), false)?;
        let row = NodeRow { id: view.id.clone(), url: view.url.clone(), name: view.name.clone(), trust: None };
        let app = self.clone();
        let stored = self
            .with_store(move |store| {
                if let Some(key) = &address.key {
                    app.inner.secrets.set(&row.id, key)?;
                }
                store.add_node(&row)
            })
            .await;
        if let Err(error) = stored.and_then(|stored| stored.map_err(AppError::from)) {
            self.inner.nodes.remove(&view.id);
            return Err(error);
        }
        self.probe_node(&view.id).await
    }

    /// Takes a node off the list and forgets its key.
    ///
    /// # Errors
    /// `NotFound` where it isn't on the list.
    pub async fn remove_node(&self, id: &str) -> Result<(), AppError> {
        let is_stored = self.inner.nodes.remove(id).ok_or_else(|| unknown(id))?;
        if is_stored {
            let (app, id) = (self.clone(), id.to_owned());
            self.with_store(move |store| {
                app.inner.secrets.remove(&id)?;
                store.remove_node(&id)
            })
            .await??;
        }
        Ok(())
    }

    /// Asks a node how it is.
    ///
    /// # Errors
    /// `NotFound` where it isn't on the list; a node that doesn't answer is not an error but a state.
    pub async fn probe_node(&self, id: &str) -> Result<NodeView, AppError> {
        self.inner.nodes.probe(id).await.ok_or_else(|| unknown(id))
    }
}

fn unknown(id: &str) -> AppError {
    AppError::new(ErrorCode::NotFound, format!("There is no node “{id}” on the list."))
}
