"""What is kept between questions and between processes: options and stores on disk."""
