package bootproto

import "time"

// aging is a map that forgets. An entry lives for at least one period after it
// was put, at most for two, unless more than limit entries are put in a period:
// then the older half goes at once. It holds at most twice limit entries.
// Forgetting takes the same time however much is forgotten: there are two maps,
// the elder is dropped whole and the younger takes its place.
type aging[K comparable, V any] struct {
	period     time.Duration
	limit      int
	young, old map[K]V
	turned     time.Time
}

func (a *aging[K, V]) get(now time.Time, k K) (V, bool) {
	a.age(now)
	v, ok := a.young[k]
	if !ok {
		v, ok = a.old[k]
	}
	return v, ok
}

func (a *aging[K, V]) put(now time.Time, k K, v V) {
	a.age(now)
	if _, ok := a.young[k]; !ok && len(a.young) >= a.limit {
		a.turn(now)
	}
	if a.young == nil {
		a.young = make(map[K]V)
	}
	a.young[k] = v
}

func (a *aging[K, V]) age(now time.Time) {
	if now.Sub(a.turned) < a.period {
		return
	}
	idle := now.Sub(a.turned) >= 2*a.period
	a.turn(now)
	if idle {
		a.old = nil
	}
}

func (a *aging[K, V]) turn(now time.Time) {
	a.young, a.old, a.turned = nil, a.young, now
}
