package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// broadcast wakes everybody who waits for the next event of some kind.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{} // nil while nobody waits
}

func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) notify() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// machine joins Raft and the StateMachine, and knows what has been applied.
type machine struct {
	inner  StateMachine
	logger hclog.Logger

	applied atomic.Uint64
	moved   broadcast // applied has risen

	latest      atomic.Uint64 // last entry that a snapshot would contain
	snapshotted atomic.Uint64 // last entry that the newest snapshot contains

	// configuration is the newest that is committed and was applied here: with its
	// index, which Raft's own GetConfiguration does not tell (it is always 0).
	configuration atomic.Pointer[configuration]

	once   sync.Once
	reason atomic.Pointer[error]
	halted chan struct{} // closed after reason is set

	// restoring by an operator: Raft panics when the state machine fails then.
	restoring atomic.Bool
	unusable  atomic.Pointer[error] // why the latest snapshot could not be restored
}

var (
	_ raft.FSM                = (*machine)(nil)
	_ raft.ConfigurationStore = (*machine)(nil)
)

func newMachine(inner StateMachine, logger hclog.Logger) *machine {
	return &machine{inner: inner, logger: logger, halted: make(chan struct{})}
}

// configuration is a committed configuration and where it stands in the log.
type configuration struct {
	index   uint64
	servers []raft.Server
}

// refusal is the response to a proposer whose entry was not applied here.
type refusal struct{ err error }

func (m *machine) err() error {
	if r := m.reason.Load(); r != nil {
		return *r
	}
	return nil
}

func (m *machine) halt(err error) {
	m.once.Do(func() {
		m.reason.Store(&err)
		close(m.halted)
	})
}

// Apply hands one entry over. After a panic no further entry is: R18.
func (m *machine) Apply(entry *raft.Log) (response any) {
	if err := m.err(); err != nil {
		return refusal{err}
	}
	defer func() {
		if p := recover(); p != nil {
			err := panicError(fmt.Sprintf("apply log entry %d", entry.Index), p)
			m.logger.Error("raft is stopped on this server; slaves are served on with the state before the entry", "error", err, "stack", string(debug.Stack()))
			m.halt(err)
			response = refusal{err}
		}
	}()
	response = m.inner.Apply(entry.Index, entry.Data)
	m.latest.Store(entry.Index)
	m.advance(entry.Index)
	return response
}

func panicError(operation string, p any) error {
	if err, ok := p.(error); ok {
		return fmt.Errorf("%s: %w", operation, err)
	}
	return fmt.Errorf("%s: panic: %v", operation, p)
}

// advance notes that everything up to index has been applied.
func (m *machine) advance(index uint64) {
	for {
		old := m.applied.Load()
		if index <= old {
			return
		}
		if m.applied.CompareAndSwap(old, index) {
			m.moved.notify()
			return
		}
	}
}

// waitApplied returns once index has been applied.
func (m *machine) waitApplied(ctx context.Context, index uint64, closing <-chan struct{}) error {
	for {
		moved := m.moved.wait()
		if m.applied.Load() >= index {
			return nil
		}
		select {
		case <-moved:
		case <-m.halted:
			return m.err()
		case <-closing:
			return errClosing
		case <-ctx.Done():
			return errWaitedTooLong
		}
	}
}

// StoreConfiguration takes part so that the applied index passes membership
// changes; without it no snapshot could be taken until the next command (R23).
func (m *machine) StoreConfiguration(index uint64, c raft.Configuration) {
	m.configuration.Store(&configuration{index: index, servers: c.Servers})
	if m.err() == nil {
		m.latest.Store(index)
		m.advance(index)
	}
}

// Snapshot captures the state.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	if err := m.err(); err != nil {
		return nil, err
	}
	state, err := m.inner.Snapshot()
	if err != nil {
		return nil, err
	}
	return &snapshot{state: state, index: m.latest.Load(), machine: m}, nil
}

// snapshot is a captured state.
type snapshot struct {
	state   io.WriterTo
	index   uint64
	machine *machine
}

// Persist writes it.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := s.state.WriteTo(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return err
	}
	s.machine.snapshotted.Store(s.index)
	return nil
}

// Release has nothing to let go of.
func (*snapshot) Release() {}

// Restore replaces the state by a snapshot.
func (m *machine) Restore(source io.ReadCloser) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicError("restore snapshot", p)
		}
		err = errors.Join(err, source.Close())
		if why := err; why != nil {
			m.unusable.Store(&why)
		}
		if err != nil && m.restoring.Load() {
			m.halt(err)
			err = nil
		}
	}()
	if err := m.err(); err != nil {
		return err
	}
	if err := m.inner.Restore(source); err != nil {
		return err
	}
	if meta := snapshotMeta(source); meta != nil {
		m.configuration.Store(&configuration{index: meta.ConfigurationIndex, servers: meta.Configuration.Servers})
		m.latest.Store(meta.Index)
		m.snapshotted.Store(meta.Index)
		m.advance(meta.Index)
	}
	return nil
}

// snapshots is a SnapshotStore whose readers carry what is known of the snapshot,
// which Raft does not tell a state machine that it restores.
type snapshots struct{ raft.SnapshotStore }

type describedSnapshot struct {
	io.ReadCloser
	meta *raft.SnapshotMeta
}

// Open opens a snapshot.
func (s snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, source, err := s.SnapshotStore.Open(id)
	if err != nil {
		return nil, nil, err
	}
	return meta, &describedSnapshot{ReadCloser: source, meta: meta}, nil
}

func snapshotMeta(source io.ReadCloser) *raft.SnapshotMeta {
	if wrapper, ok := source.(raft.ReadCloserWrapper); ok {
		source = wrapper.WrappedReadCloser()
	}
	if s, ok := source.(*describedSnapshot); ok {
		return s.meta
	}
	return nil
}
