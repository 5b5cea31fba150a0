//! What every store must do, whichever database it is: one body per case, run on each of them.
//!
//! A case gets a [`Fixture`]: a store with a database of its own, migrated and empty. What only
//! one database can show stands in a file of its own.

mod change;
mod edits;
mod fixture;
mod lanes;
mod postgres;
mod read;
mod receipts;
mod recent;
mod send;
mod settle;
mod sync;
mod upkeep;

use fixture::Fixture;

/// One test per case and store.
macro_rules! on_each_store {
    ($($file:ident: $($case:ident),+;)+) => {
        mod on_postgres {
            $($(
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    super::fixture::run(super::Fixture::postgres().await, super::$file::$case).await;
                }
            )+)+
        }
        mod on_sqlite {
            $($(
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    super::fixture::run(Some(super::Fixture::sqlite().await), super::$file::$case).await;
                }
            )+)+
        }
    };
}

on_each_store! {
    send:
        a_batch_is_stored_in_the_order_given,
        a_repeated_message_is_given_again,
        a_repeated_message_is_given_again_to_one_who_left,
        what_the_sender_may_not_do_is_refused_and_takes_no_seq,
        a_parent_must_be_seen_by_the_sender,
        only_members_can_be_mentioned;
    lanes:
        seqs_are_gap_free_however_many_write,
        a_direct_conversation_exists_once_per_pair,
        changes_and_messages_share_one_log;
    change:
        a_group_begins_with_its_creator_as_owner,
        members_are_added_by_owners_and_admins,
        a_group_has_a_largest_size,
        one_who_comes_back_starts_anew,
        a_member_leaves_or_is_removed,
        the_last_owner_leaves_the_group_to_the_oldest,
        roles_and_rights_are_given_by_those_above,
        the_title_is_set_by_owners_and_admins,
        a_direct_conversation_does_not_change,
        a_mute_is_ones_own_affair;
    edits:
        an_edit_keeps_the_version_before,
        an_edit_that_changes_nothing_takes_no_seq,
        mentions_and_metadata_follow_the_edit,
        only_its_sender_edits_or_deletes_a_message,
        one_who_may_not_write_may_still_delete,
        an_edit_suits_the_type_of_its_message,
        a_deleted_message_keeps_its_place_and_nothing_else,
        earlier_versions_are_shown_to_those_who_see_the_message,
        edits_and_messages_share_one_log,
        edits_and_deletions_hold_nobody_up;
    read:
        history_goes_back_page_by_page,
        history_begins_where_the_member_may_look,
        history_goes_on_page_by_page,
        a_thread_is_the_replies_to_one_message,
        strangers_and_leavers_read_nothing,
        unread_are_the_undeleted_messages_of_others,
        conversations_are_listed_by_activity,
        members_are_shown_and_paged,
        events_show_nobodys_own_state,
        members_for_dispatch_include_recent_leavers,
        replies_are_counted,
        acquainted_are_those_in_a_common_conversation;
    settle:
        a_run_moves_up_to_its_end,
        a_run_waits_for_an_earlier_message_of_others,
        own_and_deleted_messages_hold_nobody,
        runs_of_one_member_settle_one_after_the_other,
        a_run_is_refused_above_the_head_and_to_strangers,
        devices_move_what_people_see_and_the_offline_sink_does_not,
        large_groups_keep_watermarks_without_receipts;
    receipts:
        what_a_device_tells_moves_what_people_see,
        a_receipt_for_what_one_cannot_see_changes_nothing,
        receipts_given_together_are_one_step,
        senders_are_found_in_a_stretch,
        each_recipient_of_a_message_is_shown_with_times,
        times_are_forgotten_and_the_state_is_not,
        an_acknowledgement_moves_all_up_to_it_or_nothing;
    sync:
        a_client_ends_with_what_the_model_has,
        a_page_is_complete_up_to_where_it_ends,
        heads_are_those_of_the_range,
        a_copy_of_another_log_is_reset;
    recent:
        what_is_held_in_memory_is_what_the_store_says;
    upkeep:
        an_outbox_row_is_claimed_when_its_lease_runs_out,
        a_row_that_cannot_be_read_holds_up_no_other,
        laggards_are_those_behind_and_nobody_else,
        a_laggard_is_claimed_once_and_goes_when_settled,
        laggards_wait_and_are_hastened,
        one_who_lacks_nothing_any_more_is_no_laggard,
        a_long_monologue_makes_no_laggard_of_its_author,
        all_at_once_nobody_is_left_behind,
        the_tables_are_laid_once_however_many_try,
        one_process_holds_the_single_node_lock,
        the_epoch_stays;
}
