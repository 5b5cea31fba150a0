-- Receipts are forgotten by age. They come in the order of their times, so a summary of each stretch
-- of the table finds the old ones at next to no cost for those who write.
create index receipts_at on receipts using brin (at) with (pages_per_range = 32);
