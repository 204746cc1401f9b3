package api

// RestoreError turns what another server described with DescribeError back into an
// error: errors.Is finds the sentinel that it was.
func RestoreError(body ErrorBody, status int) error { return restore(body.Error, status) }
