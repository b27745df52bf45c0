module vpssnapd

go 1.26.8
