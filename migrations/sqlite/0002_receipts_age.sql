-- Receipts are forgotten by age.
create index receipts_at on receipts (at);
