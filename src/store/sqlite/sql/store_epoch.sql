select store_epoch from store_meta
