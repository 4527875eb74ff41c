/* Who waits is served: laws L4, L5 and L8, with the clauses STEP-5, EVENT-2 and SERVER-3.
 *
 * Three clients of two servers want one name, again and again. Messages take no time here, but
 * events get lost, clients die, and a server dies. Nobody is late: a live server looks at its
 * waiters and renews its holders once in every tick, three times in the time of its word. What
 * lateness does is the matter of `lease.pml`.
 */

#define N 3
#define TTL 5
#define WORD 3
#define SERVER(c) ((c) % 2)   /* clients 0 and 2 are at server 0, client 1 is at server 1 */
#define LEASE(c) ((c) + N)

#ifndef WATCHED
#define WATCHED 2             /* the client that must be served: it does not die */
#endif
#ifndef DEATHS
#define DEATHS 1              /* how many clients die */
#endif

#include "rules.pml"

mtype = { IDLE, WAITS, HAS, GONE };

mtype is[N] = IDLE;       /* as the client knows it */
bool news[N];             /* the event `granted` is on its way to the client's server */
bool dead[2];             /* servers */
bool looked[2];           /* in this tick */
byte since_death;         /* of the server that died; counted as far as it matters */
bool to_the_dead;         /* the holder was granted after its server had died */
bool ran_out;             /* the lease before this one was not released */
byte deaths;

#define asks_on (is[WATCHED] == WAITS && !dead[SERVER(WATCHED)])
ltl served { [] (asks_on -> <> (!asks_on)) }   /* it can only be granted, or its server dies */

/* Reachability: with WANTED a run must fail at the place of that number. */
#ifndef WANTED
#define WANTED 0
#endif
#define reached(what) assert(what != WANTED)
#define DEAD_WAITER_DROPPED 1
#define DEAD_WAITER_GRANTED 2
#define WAITER_GRANTED_AFTER_EXPIRY 3
#define LOST_EVENT_MADE_UP_FOR 4
#define SERVER_DIES_WITH_WAITER 5

inline on_grant(lease, provisional) {
  printf("STEP store: grants to client %d, for %d ticks\n", CLIENT(lease), left);
  to_the_dead = dead[SERVER(CLIENT(lease))];
  reached((to_the_dead -> DEAD_WAITER_GRANTED : 99));
  reached((ran_out && !to_the_dead -> WAITER_GRANTED_AFTER_EXPIRY : 99));
  ran_out = false;
  news[CLIENT(lease)] = true
}
inline on_end() {
  printf("STEP store: the lease has run out\n");
  to_the_dead = false;
  ran_out = true
}
inline on_drop(lease) {
  printf("STEP store: drops client %d, whom nobody vouches for\n", CLIENT(lease));
  reached(DEAD_WAITER_DROPPED)
}

#define holds(c) (holder == LEASE(c) && left > 0)

inline script_acquire(c) {      /* it always queues; the queue moves up in the same step */
  advance(SERVER(c), true);
  if
  :: !holds(c) && !queued[c] -> enqueue(LEASE(c)); advance(SERVER(c), true)
  :: else
  fi
}
inline script_release(c) {
  advance(SERVER(c), true);
  if
  :: holds(c) -> holder = NOBODY; left = 0; to_the_dead = false
  :: !holds(c) && queued[c] -> leave_queue(LEASE(c))
  :: else
  fi;
  ran_out = false;
  advance(SERVER(c), true)
}

/* A server that learns of a grant renews it first (it may be provisional), and then tells. */
inline take_up(c) {
  news[c] = false;
  if
  :: holds(c) && is[c] == WAITS ->
    printf("STEP server %d: renews the lease, and tells client %d that it has it\n", SERVER(c), c);
    left = TTL;
    is[c] = HAS
  :: holds(c) && is[c] == GONE -> script_release(c)    /* EVENT-3 */
  :: else
  fi
}
inline look_after(c) {          /* EVENT-2, SERVER-3; a client that is gone is vouched for no more */
  advance(SERVER(c), true);
  if
  :: is[c] == HAS && holds(c) -> left = TTL
  :: is[c] == HAS && !holds(c) -> is[c] = IDLE
  :: is[c] == WAITS && holds(c) ->
    reached((news[c] -> 99 : LOST_EVENT_MADE_UP_FOR));
    take_up(c)
  :: is[c] == WAITS && queued[c] -> word[c] = WORD
  :: is[c] == WAITS && !holds(c) && !queued[c] -> script_acquire(c)
  :: else
  fi
}

active [N] proctype Client() {
  byte c = _pid;
  do
  :: d_step { is[c] == IDLE && !dead[SERVER(c)] ->
      printf("STEP client %d: asks\n", c);
      is[c] = WAITS;
      script_acquire(c)
    }
  :: d_step { is[c] == HAS && !dead[SERVER(c)] ->
      printf("STEP client %d: releases\n", c);
      is[c] = IDLE;
      script_release(c)
    }
  :: d_step { is[c] != GONE && c != WATCHED && deaths < DEATHS ->
      printf("STEP client %d: dies\n", c);
      deaths++;
      is[c] = GONE
    }
  od
}

active [2] proctype Server() {
  byte s = _pid - N;
  do
  :: d_step { !dead[s] && news[s] -> take_up(s) }
  :: d_step { s == 0 && !dead[s] && news[2] -> take_up(2) }
  :: d_step { !dead[s] && !looked[s] ->
      look_after(s);
      if
      :: s == 0 -> look_after(2)
      :: else
      fi;
      looked[s] = true
    }
  :: d_step { s == 1 && !dead[s] ->      /* one of them dies, with all that it knew */
      printf("STEP server 1: dies\n");
      reached((queued[1] -> SERVER_DIES_WITH_WAITER : 99));
      dead[s] = true
    }
  od
}

active proctype Nature() {
  byte i;
  do
  :: d_step { (looked[0] || dead[0]) && (looked[1] || dead[1]) ->
      printf("STEP clock: a tick\n");
      elapse(left);
      for (i : 0 .. N - 1) { elapse(word[i]) }
      i = 0;
      looked[0] = false;
      looked[1] = false;
      if
      :: dead[1] && since_death < WORD -> since_death++
      :: else
      fi;
      /* Law L5, ADR 0008: the turn of the dead passes by within the time of their server's word. */
      assert(!(since_death >= WORD && to_the_dead && left > 0))   /* the dead delay nobody for long */
    }
  :: d_step { news[0] -> printf("STEP network: loses an event\n"); news[0] = false }
  :: d_step { news[1] -> printf("STEP network: loses an event\n"); news[1] = false }
  :: d_step { news[2] -> printf("STEP network: loses an event\n"); news[2] = false }
  od
}
