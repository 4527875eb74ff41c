package main

import (
	"context"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidislock"
)

// rueidisLock is `SET NX PXAT` and a `GET`, so that Redis tells when the key changes.
type rueidisLock struct {
	locker rueidislock.Locker
	name   string
	giveUp context.CancelFunc
}

func (l *rueidisLock) acquire() error {
	_, giveUp, err := l.locker.WithContext(context.Background(), l.name)
	l.giveUp = giveUp
	return err
}

// release returns when Redis has answered; the library does not say what.
func (l *rueidisLock) release() error {
	l.giveUp()
	return nil
}

// openRueidis makes lockers over one Redis, each with one connection.
func openRueidis(address string, names []string, apart bool) ([]lock, error) {
	locks := make([]lock, len(names))
	var locker rueidislock.Locker
	for place, name := range names {
		if apart || locker == nil {
			var err error
			locker, err = rueidislock.NewLocker(rueidislock.LockerOption{
				ClientOption:   rueidis.ClientOption{InitAddress: []string{address}},
				KeyMajority:    1,
				KeyValidity:    ttl,
				NoLoopTracking: true,
				// Who has no answer for so long tries the next Redis. There is none, and so he waits
				// for news of a free lock, which do not come. The default is 20 ms: when Redis had
				// stood still for 100 ms, some twenty of the fifty workers did not go on.
				TryNextAfter: ttl,
			})
			if err != nil {
				return nil, err
			}
		}
		locks[place] = &rueidisLock{locker: locker, name: name}
	}
	return locks, nil
}
