/* A lease and its fence: laws L1, L2 and L3, with the clauses STEP-2, STEP-5 and HOLD-1 to HOLD-5.
 *
 * Two clients, each at a server of its own, want one name. Whatever is sent takes as long as it
 * likes: calls to the store, its replies and events, writes to the resource. A client or server
 * that is paused is one that takes no step for a while; clocks go on meanwhile. Once, if FLUSH or
 * RESTART is defined, the store loses everything; a restart also breaks the connections.
 *
 * What a client and its server say to each other is one with what the server and the store say:
 * a delay there is a delay here. Times are what is left of them, in ticks (see rules.pml).
 */

#define N 2
#ifndef TTL
#define TTL 2
#endif
#define WORD TTL
#define SERVER(c) (c)

#ifndef TICKS
#define TICKS 5
#endif
#ifndef TRIES
#define TRIES 1           /* of client 0; client 1 has one */
#endif
#ifndef GRANTS
#define GRANTS 4
#endif

#include "rules.pml"

/* `P:{N}:fence`, and TIME, from which fences come. It is finer than a tick: 16 to the tick, and a
 * loss takes 8, which is more than there are grants. That is the condition of law L2: the clock is
 * not behind the last grant. */
byte clock;
byte last;                /* the last fence */
byte fence;               /* the holder's */
#define TIME (clock * 16 + (lost_data -> 8 : 0))

/* Not in the store. Grants are numbered in their order, and fences must rise with it. */
byte order;               /* the holder's grant */
byte grants;
byte highest;             /* of all fences there ever were */

mtype = { IDLE, ASKED, HELD, LOST };                            /* what a client is */
mtype = { ACQUIRE, RENEW, CONFIRM, RELEASE, TOUCH, RESTORE };   /* scripts */
mtype = { ANSWERED, QUEUED, PAUSED, RENEWED, MISSING, NOTHING };  /* replies */
mtype = { GRANTED, PROVISIONAL, FLUSHED, RESTARTED };           /* events; what `touch` finds */

/* Calls: script, lease, fence, order, left, "may grant". Replies and events have the same shape. A
 * connection keeps its order; so Redis' word of a loss comes before what was done after it. */
chan calls[N] = [4] of { mtype, byte, byte, byte, byte, bool };
chan replies[N] = [5] of { mtype, byte, byte, byte, byte, bool };

/* Clients. Every try has a lease id of its own. */
mtype is[N] = IDLE;
byte tries[N];
bool busy[N];             /* its request, or the answer, is on its way */
byte belief[N];           /* for how long it may believe yet: law L3 */
byte against[N];          /* how long a request and its answer travelled; waiting is not counted */
bool travels[N];
#define LEASE(c) ((c) + N * (tries[c] + 1))
#define believes(c) (belief[c] > 0)

/* Servers: what was granted through each (of which it knows until when by its own clock). */
byte kept[N];             /* lease id; 0: none */
byte kept_fence[N];
byte kept_order[N];
byte kept_left[N];
byte over[N];             /* EVENT-1: what its waiter is granted up to this fence is over */
byte pause[N];            /* for how long it makes no grants: the restart hold */
bool lost_data;           /* it happens once */
bool refused[N];          /* for a pause; its client asks again when that is over */
bool knows_of_loss[N];
bool cut[N];              /* by a restart of the store; its next connection has not been made */

#ifdef UNANNOUNCED
bool has_heard[N];        /* of leases that last TTL (HOLD-1) */
#define heard(s) has_heard[s]
#else
#define heard(s) true     /* the fleet is at work: all servers have heard of such leases before */
#endif

/* What a client writes: 0 nothing, 1 it has looked and believes, 2 under way, 3 so, and too late. */
byte writes[N];
byte write_fence[N];
byte write_order[N];
byte seen_fence;          /* by the resource */
byte seen_order;

/* Reachability: with WANTED a run must fail at the place of that number. */
#ifndef WANTED
#define WANTED 0
#endif
#define reached(what) assert(what != WANTED)
#define reached_if(condition, what) assert(((condition) -> what : 99) != WANTED)
#define LATE_WRITE_REFUSED 1
#define WAITER_GRANTED_AFTER_EXPIRY 2
#define GRANT_HELD_BACK 3
#define LOSS_WHILE_BELIEVED 4
#define GRANT_GIVEN_BACK 5
#define LEASE_PUT_BACK 6
#define PUT_BACK_REFUSED 7
#define PROVISIONAL_CONFIRMED 8
#define LOST_EVENT_MADE_UP_FOR 9
#define GRANT_CAME_TOO_LATE 10

/* Scratch: 0 between steps. */
bool ran_out, may;
mtype what;
byte lease, f, o, t;

/* --- The scripts ------------------------------------------------------------------------------ */

inline new_fence() {
#ifdef TIMELESS
  fence = grants;
#else
#ifdef PLAIN_INCR
  fence = last + 1;
#else
  fence = (last + 1 > TIME -> last + 1 : TIME);
#endif
#endif
  last = fence
}

inline forget_holder() { holder = NOBODY; left = 0; fence = 0; order = 0 }

inline on_grant(lease_, provisional) {
  grants++;
  order = grants;
  new_fence();
  printf("STEP store: grants to client %d: fence %d, %d ticks\n", CLIENT(lease_), fence, left);
#ifdef CHECK_FENCES
  assert(fence > highest);   /* fences rise */
  highest = (fence > highest -> fence : highest);
#endif
  reached_if(ran_out && head != NOBODY, WAITER_GRANTED_AFTER_EXPIRY);
  travels[CLIENT(lease_)] = travels[CLIENT(lease_)] ||
    is[CLIENT(lease_)] == ASKED && LEASE(CLIENT(lease_)) == lease_;
  if
  :: provisional -> replies[SERVER(CLIENT(lease_))]!PROVISIONAL,lease_,fence,order,left,true
  :: !provisional && head == NOBODY -> replies[s]!ANSWERED,lease_,fence,order,left,may
  :: !provisional && head != NOBODY -> replies[s]!GRANTED,lease_,fence,order,left,may
  fi
}
inline on_end() {
  printf("STEP store: the lease of client %d has run out\n", CLIENT(holder));
  forget_holder();
  ran_out = true
}
inline on_drop(lease_) {
  printf("STEP store: drops waiting client %d\n", CLIENT(lease_))
}

#define is_held(lease) (holder == lease && left > 0)
#define may_grant (may && grants < GRANTS)

inline script_acquire() {
  advance(s, may_grant);
  if
  :: holder == lease -> left = TTL; replies[s]!ANSWERED,lease,fence,order,left,may
  :: holder != lease && queued[s] == lease -> word[s] = WORD; travels[s] = false;
    replies[s]!QUEUED,lease,last,0,0,may
  :: holder != lease && queued[s] != lease && !may_grant ->
    reached_if(!may, GRANT_HELD_BACK);
    printf("STEP store: grants nothing to client %d, for server %d pauses\n", CLIENT(lease), s);
    replies[s]!PAUSED,lease,0,0,0,may
  :: holder == NOBODY && queued[s] != lease && may_grant && len(queue) == 0 -> grant(lease, false)
  :: holder != lease && queued[s] != lease && may_grant && !(holder == NOBODY && len(queue) == 0) ->
    printf("STEP store: queues client %d\n", CLIENT(lease));
    enqueue(lease);
    travels[s] = false;
    replies[s]!QUEUED,lease,last,0,0,may
  fi
}

inline script_renew() {         /* it never resurrects */
#ifdef RENEW_RESURRECTS
  if
  :: !is_held(lease) ->
    printf("STEP store: resurrects the lease of client %d\n", CLIENT(lease));
    holder = lease; fence = f; order = o
  :: else
  fi;
  left = TTL;
#else
  if
  :: is_held(lease) -> left = TTL
  :: else -> advance(s, may_grant)
  fi;
#endif
  if
  :: what == CONFIRM && !is_held(lease)
  :: is_held(lease) ->
    printf("STEP store: renews the lease of client %d\n", CLIENT(lease));
    if
    :: what == RENEW -> replies[s]!RENEWED,lease,fence,order,left,may
    :: what == CONFIRM -> replies[s]!GRANTED,lease,fence,order,left,may
    fi
  :: what == RENEW && !is_held(lease) -> replies[s]!MISSING,lease,0,0,0,may
  fi
}

inline script_release() {
  if
  :: !is_held(lease) -> advance(s, may_grant)
  :: else
  fi;
#ifdef DELETE_WITHOUT_COMPARE
  if
  :: holder != NOBODY -> 
#else
  if
  :: holder == lease ->
#endif
    printf("STEP store: client %d releases; the holder was client %d\n",
      CLIENT(lease), CLIENT(holder));
    forget_holder()
  :: else
  fi;
  if
  :: queued[s] == lease -> leave_queue(lease)
  :: else
  fi;
  advance(s, may_grant)
}

inline script_touch() {
  advance(s, may_grant);
  if
  :: holder == lease ->
    reached_if(belief[s] == 0 && len(replies[s]) == 0, LOST_EVENT_MADE_UP_FOR);
    replies[s]!GRANTED,lease,fence,order,left,may
  :: holder != lease && queued[s] == lease -> word[s] = WORD
  :: holder != lease && queued[s] != lease -> replies[s]!NOTHING,lease,0,0,0,may
  fi
}

inline script_restore() {       /* the higher fence wins */
  advance(s, may_grant);
  if
  :: holder == lease && fence == f -> left = (left > t -> left : t)
  :: holder != NOBODY && !(holder == lease && fence == f) && fence > f ->
    reached(PUT_BACK_REFUSED)
  :: (holder == NOBODY || !(holder == lease && fence == f) && fence <= f) ->
    printf("STEP store: puts back the lease of client %d, fence %d, %d ticks\n",
      CLIENT(lease), f, t);
    reached_if(lost_data && believes(s), LEASE_PUT_BACK);
    holder = lease; fence = f; order = o; left = t;
#ifndef TIMELESS
    last = (last > f + 1 -> last : f + 1)
#else
    skip
#endif
  fi
}

inline carry_out() {            /* the next call of server s */
  calls[s]?what,lease,f,o,t,may;
  if
  :: what == ACQUIRE -> script_acquire()
  :: what == RENEW || what == CONFIRM -> reached_if(what == CONFIRM, PROVISIONAL_CONFIRMED); script_renew()
  :: what == RELEASE -> script_release()
  :: what == TOUCH -> script_touch()
  :: what == RESTORE -> script_restore()
  fi;
  what = 0; lease = 0; f = 0; o = 0; t = 0; may = false; ran_out = false
}

/* A script has at most two things to say to a server. */
#define room (len(replies[0]) < 4 && len(replies[1]) < 4)
#define can_carry_out(c) (!cut[c] && nempty(calls[c]) && room)

inline lose_everything() {
  printf("STEP store: loses all data\n");
  reached_if(believes(0) || believes(1), LOSS_WHILE_BELIEVED);
  forget_holder();
  last = 0;
  do
  :: nempty(queue) -> queue?lease
  :: empty(queue) -> break
  od;
  queued[0] = NOBODY; queued[1] = NOBODY;
  word[0] = 0; word[1] = 0;
  lease = 0;
  lost_data = true
}

inline drop_all(messages) {
  do
  :: nempty(messages) -> messages?what,lease,f,o,t,may
  :: empty(messages) -> break
  od;
  what = 0; lease = 0; f = 0; o = 0; t = 0; may = false
}

active [N] proctype Store() {   /* what it does for server s */
  byte s = _pid;
end:
  do
  :: d_step { can_carry_out(s) -> carry_out() }
  od
}

/* --- Clients and their servers ---------------------------------------------------------------- */

inline call(c, script, with_fence, with_order, with_left) {
  calls[c]!script,LEASE(c),with_fence,with_order,with_left,(pause[c] == 0)
}

inline give_back(c) {           /* EVENT-3, HOLD-4: the lease id of the message just read */
  calls[c]!RELEASE,lease,0,0,0,(pause[c] == 0)
}

inline check_beliefs() {
#ifdef CHECK_BELIEFS
  assert(!(believes(0) && believes(1)));   /* at most one client believes */
#else
  skip
#endif
}

inline believe(c) {             /* law L3: from when it was sent, less the wait at the store */
#ifdef DEADLINE_FROM_RECEIPT
  belief[c] = (t > belief[c] -> t : belief[c]);
#else
  belief[c] = (t > against[c] + belief[c] -> t - against[c] : belief[c]);
#endif
  travels[c] = false;
  against[c] = 0;
  over[c] = 0;
  check_beliefs()
}

inline keep(c) {
#if defined(FLUSH) || defined(RESTART)
  kept_left[c] = (knows_of_loss[c] && pause[c] == 0 -> 0 : t)
#else
  skip
#endif
}

inline take(c) {
  kept[c] = lease; kept_fence[c] = f; kept_order[c] = o; keep(c);
#ifdef UNANNOUNCED
  has_heard[c] = true;
#endif
  believe(c);
  reached_if(belief[c] == 0, GRANT_CAME_TOO_LATE);
  is[c] = (belief[c] > 0 -> HELD : LOST);
  printf("STEP client %d: has it, fence %d, and believes for %d ticks\n", c, f, belief[c])
}

inline rest(c) { travels[c] = false; against[c] = 0; over[c] = 0 }

inline hear_answer(c) {         /* of `acquire` */
  busy[c] = false;
  if
  :: is[c] == ASKED && lease == LEASE(c) && pause[c] > 0 && may && f != kept_fence[c] ->
    printf("STEP server %d: gives back a grant that was made before it knew of the loss\n", c);
    reached(GRANT_GIVEN_BACK);
    give_back(c);
    is[c] = IDLE; rest(c)
  :: is[c] == ASKED && lease == LEASE(c) && !(pause[c] > 0 && may && f != kept_fence[c]) -> take(c)
  :: !(is[c] == ASKED && lease == LEASE(c)) -> give_back(c)
  fi
}

#define waits(c) (is[c] == ASKED && lease == LEASE(c))

inline hear_granted(c) {        /* by an event, or by looking; or a provisional one is confirmed */
  if
  :: waits(c) && !busy[c] && f > over[c] && pause[c] > 0 ->
    printf("STEP server %d: gives back a grant, for it pauses\n", c);
    give_back(c);
#ifdef FORGETS_WHAT_IT_GAVE_BACK
    skip
#else
    over[c] = f
#endif
  :: waits(c) && !busy[c] && f > over[c] && pause[c] == 0 -> take(c)
  :: waits(c) && (busy[c] || f <= over[c])    /* that of this asking is yet to come */
  :: is[c] == HELD && lease == LEASE(c)       /* it has heard of it before */
  :: !waits(c) && !(is[c] == HELD && lease == LEASE(c)) -> give_back(c)
  fi
}

inline hear_provisional(c) {
  if
  :: waits(c) && !busy[c] && f > over[c] -> call(c, CONFIRM, f, o, 0)
  :: waits(c) && (busy[c] || f <= over[c])
  :: !waits(c) -> give_back(c)
  fi
}

inline hear_renewed(c) {
  busy[c] = false;
  if
  :: is[c] == HELD && lease == LEASE(c) -> keep(c); believe(c)
  :: else -> rest(c)
  fi
}

inline hear_missing(c) {
  busy[c] = false;
  if
  :: is[c] == HELD && lease == LEASE(c) ->
    travels[c] = false; against[c] = 0;
    if
    :: pause[c] == 0 -> is[c] = LOST; belief[c] = 0; kept[c] = 0; kept_left[c] = 0
    :: else                                   /* it may be put back yet */
    fi
  :: else -> skip
  fi
}

inline hear_of_loss(c) {
  knows_of_loss[c] = true;
#ifndef NO_RESTART_HOLD
  pause[c] = (heard(c) -> TTL : 0);
#endif
  printf("STEP server %d: hears of the loss, and pauses grants for %d ticks\n", c, pause[c]);
  if
  :: what == RESTARTED ->                     /* nothing is sent before HOLD-2 has been seen to */
    drop_all(calls[c]);
    cut[c] = false;
    busy[c] = false; rest(c);
    is[c] = (is[c] == ASKED -> IDLE : is[c])
  :: else
  fi
}

inline hear(c) {
  replies[c]?what,lease,f,o,t,may;
  if
  :: what == ANSWERED -> hear_answer(c)
  :: what == GRANTED -> hear_granted(c)
  :: what == PROVISIONAL -> hear_provisional(c)
  :: what == RENEWED -> hear_renewed(c)
  :: what == MISSING -> hear_missing(c)
  :: what == QUEUED -> busy[c] = false; over[c] = (f > over[c] -> f : over[c])
  :: what == PAUSED -> refused[c] = true; busy[c] = false; is[c] = IDLE; rest(c)
  :: what == NOTHING ->
    if
    :: is[c] == ASKED && !busy[c] -> is[c] = IDLE; rest(c)
    :: else
    fi
  :: what == FLUSHED || what == RESTARTED -> hear_of_loss(c)
  fi;
  what = 0; lease = 0; f = 0; o = 0; t = 0; may = false
}

inline leave(c) {
  call(c, RELEASE, 0, 0, 0);
  kept[c] = 0; kept_fence[c] = 0; kept_order[c] = 0; kept_left[c] = 0;
  belief[c] = 0;
  over[c] = 0;
  against[c] = (busy[c] -> against[c] : 0);
  travels[c] = busy[c] && travels[c];
  is[c] = IDLE;
  tries[c]++
}

/* Who was refused for a pause asks again when it is over. Of two that are alike, 0 asks first. */
#if TRIES == 1
#define turn(c) (c == 0 || is[0] != IDLE || tries[0] > 0)
#define tries_of(c) 1
#else
#define turn(c) true
#define tries_of(c) (c == 0 -> TRIES : 1)
#endif
#define may_ask(c) (is[c] == IDLE && tries[c] < tries_of(c) && turn(c) && !(refused[c] && pause[c] > 0))

active [N] proctype Client() {
  byte c = _pid - N;
end:
  do
  :: d_step { may_ask(c) && !busy[c] && len(calls[c]) < 2 ->
      printf("STEP client %d: asks\n", c);
      is[c] = ASKED; busy[c] = true; refused[c] = false; against[c] = 0; travels[c] = true;
      call(c, ACQUIRE, 0, 0, 0)
    }
  :: d_step { is[c] == HELD && !busy[c] && belief[c] < TTL && len(calls[c]) < 2 ->
      printf("STEP client %d: asks to renew\n", c);
      busy[c] = true; against[c] = 0; travels[c] = true;
      call(c, RENEW, kept_fence[c], kept_order[c], 0)
    }
  :: d_step { (is[c] == HELD || is[c] == LOST) && len(calls[c]) < 2 ->
      printf("STEP client %d: gives back\n", c);
      leave(c)
    }
#ifndef CALM
  :: d_step { is[c] == ASKED && !busy[c] && len(calls[c]) < 2 ->
      printf("STEP client %d: waits no longer\n", c);
      leave(c)
    }
#endif
#ifdef WRITES
  :: d_step { is[c] == HELD && writes[c] == 0 ->
      printf("STEP client %d: sees that it has it, and prepares to write with fence %d\n", c, kept_fence[c]);
      writes[c] = 1; write_fence[c] = kept_fence[c]; write_order[c] = kept_order[c]
    }
  :: d_step { writes[c] == 1 ->
      if
      :: is[c] == HELD && kept_order[c] == write_order[c] ->
        printf("STEP client %d: sends its write\n", c);
        writes[c] = 2
      :: else ->
        printf("STEP client %d: was paused, and sends its write too late\n", c);
        writes[c] = 3
      fi
    }
#endif
  od
}

/* What changes nothing when it is sent may as well be sent later. */
#define quiet(c) (len(calls[c]) == 0 && len(replies[c]) == 0)
#define touch_matters(c) (queued[c] != LEASE(c) || word[c] < WORD || left == 0)
#define put_back_matters(c) (holder != kept[c] || left < kept_left[c])

active [N] proctype Server() {
  byte c = _pid - 2 * N;
end:
  do
  :: d_step { nempty(replies[c]) && len(calls[c]) < 4 -> hear(c) }
#ifndef CALM
  :: d_step { replies[c]?[PROVISIONAL,lease,f,o,t,may] ->
      printf("STEP network: loses an event\n");
      replies[c]?what,lease,f,o,t,may;
      what = 0; lease = 0; f = 0; o = 0; t = 0; may = false
    }
#endif
  :: d_step { is[c] == ASKED && !busy[c] && quiet(c) && touch_matters(c) -> call(c, TOUCH, 0, 0, 0) }
  :: d_step { pause[c] > 0 && kept_left[c] > 0 && quiet(c) && put_back_matters(c) ->
      calls[c]!RESTORE,kept[c],kept_fence[c],kept_order[c],kept_left[c],false
    }
#ifdef UNANNOUNCED
  :: d_step { has_heard[1 - c] && !has_heard[c] ->
      printf("STEP server %d: hears that leases last %d ticks\n", c, TTL);
      has_heard[c] = true
    }
#endif
  od
}

#ifdef WRITES
inline apply() {
  if
#ifndef NO_FENCING
  :: write_fence[c] < seen_fence ->
    printf("STEP resource: refuses the write of client %d, fence %d\n", c, write_fence[c]);
    reached_if(writes[c] == 3, LATE_WRITE_REFUSED)
#endif
  :: else ->
    printf("STEP resource: takes the write of client %d, fence %d\n", c, write_fence[c]);
    assert(write_order[c] >= seen_order);   /* no stale write is applied */
    seen_fence = write_fence[c]; seen_order = write_order[c]
  fi;
  writes[c] = 0; write_fence[c] = 0; write_order[c] = 0
}

active proctype Resource() {
  byte c;
end:
  do
  :: d_step { writes[0] >= 2 -> c = 0; apply() }
  :: d_step { writes[1] >= 2 -> c = 1; apply(); c = 0 }
  od
}
#endif

active proctype Clock() {
  byte c;
end:
  do
#ifdef TIMELESS
  :: d_step { true ->
      printf("STEP clock: a tick\n");
#else
  :: d_step { clock < TICKS ->
      clock++;
      printf("STEP clock: tick %d\n", clock);
#endif
      elapse(left);
      for (c : 0 .. N - 1) {
        assert(!(len(replies[c]) >= 4 && len(calls[c]) >= 4));   /* all that is sent can be read */
        elapse(word[c]);
        elapse(belief[c]);
        elapse(kept_left[c]);
        elapse(pause[c]);
        if
        :: lost_data && knows_of_loss[c] && pause[c] == 0 -> kept_left[c] = 0   /* of no use now */
        :: else
        fi;
        if
        :: travels[c] && against[c] < TTL -> against[c]++
        :: else
        fi;
        if
        :: is[c] == HELD && belief[c] == 0 ->
          printf("STEP client %d: its deadline has passed\n", c);
          is[c] = LOST
        :: else
        fi
      }
      c = 0
    }
  od
}

#if defined(FLUSH) || defined(RESTART)
active proctype Loss() {
end:
  do
#ifdef FLUSH
  :: d_step { !lost_data && room ->
      lose_everything();
      replies[0]!FLUSHED,0,0,0,0,false;
      replies[1]!FLUSHED,0,0,0,0,false
    }
#endif
#ifdef RESTART
  :: d_step { !lost_data ->
      lose_everything();
      drop_all(calls[0]); drop_all(replies[0]);
      drop_all(calls[1]); drop_all(replies[1]);
      cut[0] = true; cut[1] = true;
      replies[0]!RESTARTED,0,0,0,0,false;
      replies[1]!RESTARTED,0,0,0,0,false
    }
#endif
  od
}
#endif
