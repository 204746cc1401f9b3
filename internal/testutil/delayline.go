package testutil

import (
	"sync"
	"time"
)

// delayLine does things in the order in which they were put, none before its time. It
// holds as many as are put: a wire of unlimited bandwidth.
type delayLine struct {
	mu     sync.Mutex
	put    *sync.Cond
	parts  []delayed
	closed bool
}

type delayed struct {
	at time.Time
	do func()
}

func newDelayLine() *delayLine {
	l := &delayLine{}
	l.put = sync.NewCond(&l.mu)
	return l
}

// Put adds what is to be done at that time.
func (l *delayLine) Put(at time.Time, do func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.parts = append(l.parts, delayed{at, do})
	l.put.Signal()
}

// Close lets Run return when it has done what was put before.
func (l *delayLine) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.put.Signal()
}

// Run does what is put until Close. When ended is closed it returns at once.
func (l *delayLine) Run(ended <-chan struct{}) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next, ok := l.next()
		if !ok {
			return
		}
		if wait := time.Until(next.at); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ended:
				return
			}
		}
		next.do()
	}
}

func (l *delayLine) next() (delayed, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.parts) == 0 && !l.closed {
		l.put.Wait()
	}
	if len(l.parts) == 0 {
		return delayed{}, false
	}
	next := l.parts[0]
	l.parts[0] = delayed{}
	l.parts = l.parts[1:]
	return next, true
}
