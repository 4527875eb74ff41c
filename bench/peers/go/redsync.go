package main

import (
	"context"
	"errors"
	"math"

	"github.com/go-redsync/redsync/v4"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/redis/go-redis/v9"
)

// redsyncLock is `SET NX PX`, again after 50 to 250 ms while somebody else holds it.
type redsyncLock struct {
	mutex *redsync.Mutex
}

func (l redsyncLock) acquire() error {
	return l.mutex.Lock()
}

func (l redsyncLock) release() error {
	done, err := l.mutex.Unlock()
	if err == nil && !done {
		return errors.New("redsync: not released")
	}
	return err
}

// openRedsync makes mutexes over one Redis, with the defaults but for the TTL and how often to try.
func openRedsync(address string, names []string, apart bool) ([]lock, error) {
	locks := make([]lock, len(names))
	var client *redis.Client
	for place, name := range names {
		if apart || client == nil {
			connections := len(names)
			if apart {
				connections = 1
			}
			client = redis.NewClient(&redis.Options{Addr: address, PoolSize: connections})
			if err := client.Ping(context.Background()).Err(); err != nil {
				return nil, err
			}
		}
		mutex := redsync.New(goredis.NewPool(client)).NewMutex(
			name, redsync.WithExpiry(ttl), redsync.WithTries(math.MaxInt),
		)
		locks[place] = redsyncLock{mutex}
	}
	return locks, nil
}
