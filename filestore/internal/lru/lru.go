// Package lru is a cache bounded by cost that drops what was not used for the
// longest time and loads each key once, however many goroutines ask for it. It
// starts no goroutine: a load runs in the goroutine that asked first.
package lru

import "sync"

// Cache maps keys to values. A value must not be changed once it is in the cache.
type Cache[K comparable, V any] struct {
	shards []shard[K, V]
	pick   func(K) uint32
}

type shard[K comparable, V any] struct {
	mu      sync.Mutex
	entries map[K]*entry[K, V]
	loads   map[K]*load[V]
	ring    entry[K, V] // sentinel: ring.next was used last, ring.prev longest ago
	cost    int64
	limit   int64
}

type entry[K comparable, V any] struct {
	prev, next *entry[K, V]
	key        K
	value      V
	cost       int64
}

type load[V any] struct {
	done    chan struct{}
	value   V
	err     error
	removed bool // Remove was called meanwhile: the value is not kept
}

// New returns a cache whose values cost at most limit together. The limit is
// split evenly over the shards, which lock apart; pick gives a key's shard
// (taken modulo shards) and may be nil when there is one shard only.
func New[K comparable, V any](limit int64, shards int, pick func(K) uint32) *Cache[K, V] {
	c := &Cache[K, V]{shards: make([]shard[K, V], max(shards, 1)), pick: pick}
	for i := range c.shards {
		s := &c.shards[i]
		s.entries = make(map[K]*entry[K, V])
		s.loads = make(map[K]*load[V])
		s.ring.prev, s.ring.next = &s.ring, &s.ring
		s.limit = limit / int64(len(c.shards))
	}
	return c
}

func (c *Cache[K, V]) shard(key K) *shard[K, V] {
	if len(c.shards) == 1 {
		return &c.shards[0]
	}
	return &c.shards[c.pick(key)%uint32(len(c.shards))]
}

// Get returns the value of key when it is in the cache. It does not allocate.
func (c *Cache[K, V]) Get(key K) (V, bool) {
	s := c.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.get(key)
}

// Load returns the value of key: from the cache, from a load in progress, or
// from fetch, which also says what the value costs. An error is given to all who
// wait for this load and is not kept; neither is a value that costs more than a
// shard may hold.
func (c *Cache[K, V]) Load(key K, fetch func() (value V, cost int64, err error)) (V, error) {
	s := c.shard(key)
	s.mu.Lock()
	if v, ok := s.get(key); ok {
		s.mu.Unlock()
		return v, nil
	}
	if l := s.loads[key]; l != nil {
		s.mu.Unlock()
		<-l.done
		return l.value, l.err
	}
	l := &load[V]{done: make(chan struct{})}
	s.loads[key] = l
	s.mu.Unlock()

	var cost int64
	l.value, cost, l.err = fetch()

	s.mu.Lock()
	delete(s.loads, key)
	if l.err == nil && !l.removed && cost <= s.limit {
		s.insert(key, l.value, cost)
	}
	s.mu.Unlock()
	close(l.done)
	return l.value, l.err
}

// Remove forgets key. A load of it in progress still answers those who wait for
// it, and is not kept.
func (c *Cache[K, V]) Remove(key K) {
	s := c.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.loads[key]; l != nil {
		l.removed = true
	}
	if e := s.entries[key]; e != nil {
		s.drop(e)
	}
}

// Cost returns what the values in the cache cost together.
func (c *Cache[K, V]) Cost() int64 {
	var sum int64
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		sum += s.cost
		s.mu.Unlock()
	}
	return sum
}

func (s *shard[K, V]) get(key K) (V, bool) {
	e := s.entries[key]
	if e == nil {
		var none V
		return none, false
	}
	if s.ring.next != e {
		e.unlink()
		e.linkAfter(&s.ring)
	}
	return e.value, true
}

func (s *shard[K, V]) insert(key K, value V, cost int64) {
	e := &entry[K, V]{key: key, value: value, cost: cost}
	e.linkAfter(&s.ring)
	s.entries[key] = e
	for s.cost += cost; s.cost > s.limit; {
		s.drop(s.ring.prev)
	}
}

func (s *shard[K, V]) drop(e *entry[K, V]) {
	e.unlink()
	delete(s.entries, e.key)
	s.cost -= e.cost
}

func (e *entry[K, V]) unlink() {
	e.prev.next, e.next.prev = e.next, e.prev
}

func (e *entry[K, V]) linkAfter(at *entry[K, V]) {
	e.prev, e.next = at, at.next
	at.next.prev, at.next = e, e
}
