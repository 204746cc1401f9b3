package fleet

import (
	"cmp"
	"container/list"
	"net/netip"
	"slices"
	"sync"

	"eboot"
)

// pinKey is what a pin belongs to.
type pinKey struct {
	slave netip.Addr
	erts  string
}

// pinTable holds the pins, the longest unused of which are forgotten. It is safe
// for use by several goroutines.
type pinTable struct {
	limit int

	mu      sync.Mutex
	byKey   map[pinKey]*list.Element
	order   *list.List // of eboot.Pin, latest used first
	version uint64     // rises with every change that the file should have
}

func newPinTable(limit int) *pinTable {
	return &pinTable{limit: limit, byKey: map[pinKey]*list.Element{}, order: list.New()}
}

func (t *pinTable) set(p eboot.Pin) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.put(p)
	t.version++
}

func (t *pinTable) put(p eboot.Pin) {
	key := pinKey{p.Slave, p.ERTS}
	if e, known := t.byKey[key]; known {
		e.Value = p
		t.order.MoveToFront(e)
		return
	}
	if t.order.Len() >= t.limit {
		oldest := t.order.Remove(t.order.Back()).(eboot.Pin)
		delete(t.byKey, pinKey{oldest.Slave, oldest.ERTS})
	}
	t.byKey[key] = t.order.PushFront(p)
}

func (t *pinTable) get(key pinKey) (eboot.Pin, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, known := t.byKey[key]
	if !known {
		return eboot.Pin{}, false
	}
	t.order.MoveToFront(e) // the slave lives
	return e.Value.(eboot.Pin), true
}

// all returns the pins, longest unused first, and the version they are of.
func (t *pinTable) all() ([]eboot.Pin, uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	pins := make([]eboot.Pin, 0, t.order.Len())
	for e := t.order.Back(); e != nil; e = e.Prev() {
		pins = append(pins, e.Value.(eboot.Pin))
	}
	return pins, t.version
}

func (t *pinTable) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.order.Len()
}

func (t *pinTable) changedSince(version uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.version != version
}

// Pin returns the bundle that the latest boot of slave with ERTS version erts
// began with; false when it is not known.
func (f *Fleet) Pin(slave netip.Addr, erts string) (eboot.Pin, bool) {
	return f.pins.get(pinKey{slave.Unmap(), erts})
}

// Pins returns all pins in order of address and ERTS version.
func (f *Fleet) Pins() []eboot.Pin {
	pins, _ := f.pins.all()
	slices.SortFunc(pins, func(a, b eboot.Pin) int {
		return cmp.Or(a.Slave.Compare(b.Slave), cmp.Compare(a.ERTS, b.ERTS))
	})
	return pins
}
