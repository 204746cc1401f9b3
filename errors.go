package eboot

import "errors"

// What a request got wrong. The caller must change something before it tries again.
var (
	// ErrInvalid: the input cannot be understood or breaks a rule; the text says where.
	ErrInvalid = errors.New("invalid")
	// ErrTooLarge: the input exceeds a stated limit.
	ErrTooLarge = errors.New("too large")
	// ErrNotFound: the thing named does not exist.
	ErrNotFound = errors.New("not found")
	// ErrConflict: the thing exists already with other content, is in use, or the
	// generation is not the one the caller expected.
	ErrConflict = errors.New("conflict")
	// ErrDenied: the caller or the slave is not allowed to do this.
	ErrDenied = errors.New("denied")
	// ErrUnauthenticated: the caller has not shown who it is, or what it showed is not accepted.
	ErrUnauthenticated = errors.New("not authenticated")
)

// What a server cannot do at this moment. The same call may succeed later.
var (
	// ErrUnreachable: no server could be connected to, or the connection broke
	// before there was an answer to a question.
	ErrUnreachable = errors.New("unreachable")
	// ErrUnavailable: the server was reached and cannot do this now: it is stopping,
	// full, or lacks what is needed.
	ErrUnavailable = errors.New("unavailable")
	// ErrNoLeader: the write was not proposed, because no leader is known.
	ErrNoLeader = errors.New("no leader")
	// ErrTimeout: the time given ran out before anything was changed.
	ErrTimeout = errors.New("timed out")
	// ErrUnknownOutcome: the write was proposed, and whether it took effect is not
	// known. Repeating it with the same request id is safe.
	ErrUnknownOutcome = errors.New("outcome unknown")
	// ErrDamaged: stored content does not match its digest.
	ErrDamaged = errors.New("damaged")
)
