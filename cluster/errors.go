package cluster

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"eboot"
)

// outcomes says what an error of Raft means for the change that was proposed,
// and for a read that waited on Raft. An error that is not listed, above all one of
// the disk, leaves open whether the change took effect.
var outcomes = []struct {
	raft   error
	change error
	read   error
}{
	{raft.ErrEnqueueTimeout, eboot.ErrTimeout, eboot.ErrTimeout},
	{raft.ErrNotLeader, eboot.ErrNoLeader, eboot.ErrNoLeader},
	{raft.ErrLeadershipTransferInProgress, eboot.ErrNoLeader, eboot.ErrNoLeader},
	{raft.ErrAbortedByRestore, eboot.ErrConflict, eboot.ErrUnavailable}, // its effect, if any, was replaced
	{raft.ErrLeadershipLost, eboot.ErrUnknownOutcome, eboot.ErrNoLeader},
	{raft.ErrRaftShutdown, eboot.ErrUnknownOutcome, eboot.ErrUnavailable},
	{errWaitedTooLong, eboot.ErrUnknownOutcome, eboot.ErrTimeout},
	{errNotProposed, eboot.ErrTimeout, eboot.ErrTimeout},
	{errClosing, eboot.ErrNoLeader, eboot.ErrUnavailable},
}

var (
	errWaitedTooLong = errors.New("the time given ran out while waiting for raft")
	errNotProposed   = errors.New("the time given ran out before raft was asked")
	errClosing       = errors.New("this server's raft is stopping")
)

// changeError translates the error of a proposed change; nil stays nil.
func changeError(operation string, err error) error {
	for _, o := range outcomes {
		if errors.Is(err, o.raft) {
			return fmt.Errorf("%s: %w: %w", operation, o.change, err)
		}
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w: %w", operation, eboot.ErrUnknownOutcome, err)
}

// readError translates the error of what changes nothing; nil stays nil.
func readError(operation string, err error) error {
	for _, o := range outcomes {
		if errors.Is(err, o.raft) {
			return fmt.Errorf("%s: %w: %w", operation, o.read, err)
		}
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w: %w", operation, eboot.ErrUnavailable, err)
}
